package cluster

import (
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
)

// Errors of this package, for errors.Is. A connection that has ended is an error that matches
// net.ErrClosed, a mailbox without room tcpio.ErrMailboxFull.
var (
	// ErrNobody: no connection on any node has the key.
	ErrNobody = errors.New("cluster: nobody has the key")
	// ErrUnknown: the answer did not come; what was posted may have arrived or not. It is not
	// repeated. The error matches ctx's too, or ErrDisconnected.
	ErrUnknown = errors.New("cluster: the outcome is not known")
	// ErrDisconnected: the node has no connection to NATS; nobody has got anything.
	ErrDisconnected = errors.New("cluster: not connected to NATS")
	// ErrNoQuorum: JetStream has no majority, or no leader at the moment.
	ErrNoQuorum = errors.New("cluster: no quorum")
	// ErrReplaced: a newer Claim of the key was faster.
	ErrReplaced = errors.New("cluster: a newer claim has the key")
	// ErrName: a name has more than 400 bytes once encoded: letters, digits, - and _ count 1, other
	// bytes 3.
	ErrName = errors.New("cluster: the name is too long")
	// ErrTooLong: a message, or what others see of a member, is longer than may be.
	ErrTooLong = errors.New("cluster: too long")
	// ErrClosed: the node was closed, or is in Drain.
	ErrClosed = errors.New("cluster: the node is closed")
	// ErrNoReply: the handler of an Ask gave no []byte to Reply, or its connection ended first.
	ErrNoReply = errors.New("cluster: no reply")
)

// sendError is what NATS said to a publish, in this package's terms.
func sendError(op string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("cluster: %s: %w", op, sendCause(err))
}

// sendCause is sendError without a prefix.
func sendCause(err error) error {
	if errors.Is(err, nats.ErrMaxPayload) {
		return fmt.Errorf("%w: %w", ErrTooLong, err)
	}
	return fmt.Errorf("%w: %w", ErrDisconnected, err)
}
