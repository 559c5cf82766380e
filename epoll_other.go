//go:build !linux

package tcpio

import "errors"

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
	t token
}

func (e *readyEvent) bits() uint32 { return e.b }
func (e *readyEvent) token() token { return e.t }

func newPoller() (poller, error) { return nil, errors.ErrUnsupported }
