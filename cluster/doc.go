// Package cluster joins any number of processes to one chat, one user list, one set of sessions:
// what a tcpio program does on one machine then works the same on many. The processes talk through
// NATS, whose connection the program brings; see the folder embedded for one that needs no server
// to be installed.
//
//	nc, err := nats.Connect(url, cluster.NATSOptions()...)
//	...
//	n, err := cluster.Open(ctx, nc, &cluster.Options{Name: "chat"})
//	...
//	room := n.Topic("room 1")
//	err = room.Join(conn, &cluster.Member{ID: "ann"})
//	err = room.Publish([]byte("hello\n")) // to all members, on all nodes
//
// # Words
//
// A node is one process that has called Open: an incarnation with a random id. A topic is a name
// with members, which are connections on any nodes. A key is a name of a connection, or of a user
// with several. A session is a key that one connection has at most; its fence is a number that says
// which of two was first.
//
// # What it promises
//
// Publish: at most once for each member. What one node publishes in a topic arrives in that order
// everywhere; between publishers there is no order. Nothing is lost in silence: NATS delivers at
// most once, so what an outage, an overload or a partition has swallowed is counted and comes out
// as a [Lost], within two heartbeats of the end of the cause.
//
// Presence belongs to the node of the member. The others learn of a change at once, ask again for
// all of it after any doubt, until they are answered, and drop what a node has told them when they
// have not heard of it for 4 heartbeats. No ghost outlives its node longer.
//
// Post and Ask: never twice. Where the answer is lost the error says so, with [ErrUnknown].
//
// Claim: one connection has a key, the newest; fences grow with every claim of it, also behind a
// partition and the loss of all that is stored. In a partition two may have the key for one Lease,
// with Sessions.Strict none. The side without a majority cannot claim.
//
// Recorded topics, those of a [Class]: a message that Publish has returned for is kept by a
// majority, and all members see all of them in one order. What NATS loses on the way to a node is
// got from the stream. Resume goes on from a position with nothing twice and nothing missing, or
// says that it is not whole.
//
// Nodes trust each other: who may publish under the cluster's subjects can post to any key.
//
// # Where user code runs
//
// Functions that are passed to Watch run on a goroutine of the node's, under no lock, and may
// block.
package cluster
