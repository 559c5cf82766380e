package cluster

import "time"

// Posted is the Value of a Message that Post or Ask has sent. To an Ask the handler answers with
// Message.Reply and a []byte. Data is the handler's.
type Posted struct {
	Key  string
	Data []byte
}

// Moved is the Value of a Message that Drain sends: tell the client to connect again after After,
// which then finds another node, and close.
type Moved struct{ After time.Duration }

// Replaced is the Value of a Message to a connection whose key a newer Claim has taken: tell the
// client, which must not connect again by itself, and close. The connection is closed a fifth of
// Sessions.Lease later otherwise. Fence is that of the newer session.
type Replaced struct {
	Key   string
	Fence uint64
}

// Unsure is the Value of a Message to a connection whose node has lost its lease: JetStream's
// majority has not heard of it for too long, so another may get the key without the node's knowing.
// The connection has lost the key, and is closed as with Replaced. The client may connect again, to
// another node best.
type Unsure struct{ Key string }
