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
