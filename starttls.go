package tcpio

import (
	"crypto/tls"
	"errors"
	"fmt"

	"github.com/rabbit-backend/tcpio/internal/buf"
)

// StartTLS begins TLS on a plain connection, as the server, and returns at once: the client's next
// bytes must be its handshake, as after a STARTTLS command or behind the header of a proxy. What is
// queued is sent in plain text before it. Until the handshake is done, TryRead and TryWrite return
// [ErrWouldBlock]; then a Readable comes, and TLS returns the state. If the handshake fails, or
// takes longer than [ListenerOptions.HandshakeTimeout], the connection closes with the error.
//
// What Frames has read and not handed out are the first bytes of the handshake: a client may send
// it right behind its command. It may be called within a loop over Frames; the frames that follow
// come out of TLS. Bytes that were read in plain text are never handed out as if they had been
// encrypted: a command that somebody has injected there fails the handshake. What your code has
// taken, by TryRead or as a frame, TLS does not see.
//
// It fails, and takes nothing, while split runs in another goroutine, or when Frames has kept more
// than 64 KiB; on a nil config, and on a connection that has TLS or is half-closed; and after Close
// with net.ErrClosed. Any goroutine may call it.
func (c *Conn) StartTLS(config *tls.Config) error {
	config = guardTLS(config)
	c.mu.Lock()
	defer c.unlock()
	if err := c.mayStartTLSLocked(config); err != nil {
		return err
	}
	c.withdrawReadableLocked()
	c.beginTLSLocked(config)
	c.ext.tls.link.startLocked(&c.ext.frames)
	c.handshakeReadyLocked(pollIn)
	return nil
}

// mayStartTLSLocked says why TLS cannot begin.
func (c *Conn) mayStartTLSLocked(config *tls.Config) error {
	why := ""
	switch {
	case c.ended():
		return c.endedLocked("starttls")
	case config == nil:
		why = "the config is nil"
	case c.tls() != nil:
		why = "the connection has TLS already"
	case c.atEOF() || c.sendEnd != sendOpen || c.writing != writeFree:
		why = "the connection is half-closed, or a write is under way"
	case c.ext != nil && c.ext.frames.split:
		why = "a split function of Frames is looking at the input"
	case c.ext != nil && c.ext.frames.Len() > buf.Large:
		why = fmt.Sprintf("Frames has kept more than %d bytes of input", buf.Large)
	default:
		return nil
	}
	return c.opErrorLocked("starttls", errors.New(why))
}

// startLocked makes what Frames has kept, and nobody has seen, the first sealed input. It is
// copied: a frame before it may be in use.
func (t *tlsLink) startLocked(f *frameBuffer) {
	if n := f.Len(); n > 0 {
		pool := &t.c.sh.pool
		t.in.Begin(pool, f.Bytes())
		f.Skip(n)
		f.more, f.partial = false, false
		f.drop(pool)
	}
}
