// Package embedded runs NATS servers inside the processes that use them, for programs that do not
// want to install one. Its servers give a [*nats.Conn], which is what package cluster needs.
//
// There are three ways, and which one is right depends on JetStream, the part of NATS that keeps
// data: unique sessions and recorded topics (Node.Claim and Node.Class) need it, topics, presence
// and keys do not. JetStream decides by majority, and counts every server name that it has ever
// seen as a voter. Processes that come and go under new names therefore lose the majority in the
// end, and a cluster of which only some servers have JetStream never gets a leader.
//
//   - [Open]: processes on one machine, any number, that come and go as they like. Each runs a
//     server, and the servers form a full mesh. No JetStream. One process that is lost takes
//     nothing with it.
//   - [Open] with Options.Store: processes on one machine again, with JetStream. One of them runs
//     the only server, a majority of one; the others are its clients. When it ends, another takes
//     over within a second, with what is stored. Meanwhile all of them are disconnected.
//   - [Start]: machines with fixed names and addresses. With Machine.Store there are 3 or 5 of
//     them, all have JetStream, and 1 or 2 may be lost.
//
// Beyond some ten servers, or with hundreds of thousands of keys, run a NATS cluster of its own.
//
// # Security
//
// Open's servers listen on 127.0.0.1 alone. A secret of 256 bits lies in the directory, which
// belongs to one user and has mode 0700. Both ends of a connection prove with TLS 1.3 that they
// know the secret, which never leaves the process: a program of another user that takes over the
// port of one that has ended learns and forges nothing. Processes that know the secret trust each
// other. Start listens on other addresses than loopback with TLS alone.
package embedded
