//go:build !linux

package tcpio

import (
	"errors"

	"github.com/rabbit-backend/tcpio/internal/sched"
)

// On other systems the package compiles, so that programs for several systems can import it, and
// Listen fails.

const (
	pollIn = 1 << iota
	pollOut
	pollPri
	pollErr
	pollHup
	pollRdHup
	pollEdge = pollIn
	pollConn = pollIn | pollOut | pollPri | pollRdHup
)

type readyEvent struct {
	b uint32
	k sched.Key
}

func (e *readyEvent) bits() uint32   { return e.b }
func (e *readyEvent) key() sched.Key { return e.k }

func newEpoll() (poller, error) { return nil, errors.ErrUnsupported }
