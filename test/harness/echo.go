//go:build linux

package harness

import (
	"errors"
	"io"
	"net"
	"testing"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// Echo is a handler for Stream that sends back what it reads. It suits peers that read what they
// are sent.
func Echo(t testing.TB) func(tcpio.Event) {
	buf := make([]byte, 64<<10)
	return func(ev tcpio.Event) {
		r, ok := ev.(tcpio.Readable)
		if !ok {
			return
		}
		n, err := r.Conn.TryRead(buf)
		switch {
		case err == io.EOF:
			r.Conn.Close()
		case err == nil:
			if _, err := r.Conn.TryWrite(buf[:n]); err != nil && !testnet.Benign(err) {
				t.Errorf("TryWrite: %v", err)
			}
		case err != tcpio.ErrWouldBlock && !testnet.Benign(err):
			t.Errorf("TryRead: %v", err)
		}
	}
}

// EchoActor is an actor that sends back what it reads.
var EchoActor = tcpio.ActorFunc(func(ev tcpio.Event) error {
	if r, ok := ev.(tcpio.Readable); ok {
		return EchoConn(r.Conn)
	}
	return nil
})

// EchoConn sends back what one TryRead gives, and blocks where there is no room for it. Its error
// is what an actor returns: nil when there was nothing to read, or the listener has been closed.
func EchoConn(c *tcpio.Conn) error {
	var p [16 << 10]byte
	n, err := c.TryRead(p[:])
	switch {
	case err == nil:
		_, err = c.Write(p[:n])
		return err
	case err == tcpio.ErrWouldBlock, errors.Is(err, net.ErrClosed):
		return nil
	}
	return err
}
