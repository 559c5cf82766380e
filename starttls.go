package tcpio

import (
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/rabbit-backend/tcpio/internal/buf"
)

// StartTLS begins TLS on a plain connection, as the server, and returns at once: the client's next
// bytes must be its handshake, as after a STARTTLS command or behind the header of a proxy. What is
// queued is sent in plain text before it. Until the handshake is done, TryRead and TryWrite return
// [ErrWouldBlock]; then a Readable comes, whatever is read meanwhile, and TLS returns the state: whoever
// speaks first speaks there. If the handshake fails, or takes longer than
// [ListenerOptions.HandshakeTimeout], the connection closes with the error.
//
// What Frames has read and not handed out are the first bytes of the handshake: a client may send
// it right behind its command. It may be called within a loop over Frames; the frames that follow
// come out of TLS. Bytes that were read in plain text are never handed out as if they had been
// encrypted: a command that somebody has injected there fails the handshake. What your code has
// taken, by TryRead or as a frame, TLS does not see.
//
// It fails, and takes nothing, while split runs in another goroutine, or when Frames has kept more
// than 64 KiB; on a config that is nil or has no certificate; on a connection that has TLS or is
// half-closed; and after Close with net.ErrClosed. Any goroutine may call it.
func (c *Conn) StartTLS(config *tls.Config) error {
	config = guardTLS(config)
	c.mu.Lock()
	defer c.unlock()
	if err := c.mayStartTLSLocked(config); err != nil {
		return err
	}
	if lacksCertificate(config) {
		return c.opErrorLocked("starttls", errors.New("the config "+noCertificate))
	}
	c.withdrawReadableLocked()
	c.beginTLSLocked(config, false)
	c.ext.tls.link.startLocked(&c.ext.frames)
	c.handshakeReadyLocked(pollIn)
	return nil
}

// StartTLSClient begins TLS on a plain connection, as the client, and returns at once, as StartTLS
// does: behind the server's answer to a STARTTLS command, or to PostgreSQL's SSLRequest. What is
// said of StartTLS holds here too. The handshake has a goroutine, of
// [ListenerOptions.MaxHandshakes]; afterwards the connection has none.
//
// Session resumption (ClientSessionCache), client certificates and ALPN work as in crypto/tls; the
// tickets of TLS 1.3 come with the first bytes that are read. It fails on a config that has neither
// a ServerName nor InsecureSkipVerify, or that allows renegotiation. config must not be changed any
// more, and may be used for any number of connections.
func (c *Conn) StartTLSClient(config *tls.Config) error {
	config, err := guardTLSClient(config)
	c.mu.Lock()
	defer c.unlock()
	if may := c.mayStartTLSLocked(config); may != nil {
		return may
	}
	if err != nil {
		return c.opErrorLocked("starttls", err)
	}
	c.withdrawReadableLocked()
	c.beginTLSLocked(config, true)
	c.ext.tls.link.startLocked(&c.ext.frames)
	c.beginClientLocked()
	return nil
}

// guardTLSClient is guardTLS for a client's config, and checks it. crypto/tls calls the session
// cache and Time also for a ticket that a read takes in, under Conn.mu.
func guardTLSClient(config *tls.Config) (*tls.Config, error) {
	if config == nil {
		return nil, nil
	}
	if config.ServerName == "" && !config.InsecureSkipVerify {
		return config, errors.New("the config has neither ServerName nor InsecureSkipVerify")
	}
	if config.Renegotiation != tls.RenegotiateNever {
		return config, errors.New("the config allows renegotiation")
	}
	config = guardTLS(config)
	if config.ClientSessionCache == nil && config.Time == nil {
		return config, nil
	}
	config = config.Clone()
	if cache := config.ClientSessionCache; cache != nil {
		config.ClientSessionCache = guardedCache{cache}
	}
	if clock := config.Time; clock != nil {
		config.Time = func() (t time.Time) {
			if elsewhere("TLSConfig.Time", func() { t = clock() }) != nil {
				return time.Now()
			}
			return t
		}
	}
	return config, nil
}

// A guardedCache is a session cache of the user's. A panic in it is a session that is not there.
type guardedCache struct{ cache tls.ClientSessionCache }

func (g guardedCache) Get(key string) (s *tls.ClientSessionState, ok bool) {
	if elsewhere("TLSConfig.ClientSessionCache", func() { s, ok = g.cache.Get(key) }) != nil {
		return nil, false
	}
	return s, ok
}

func (g guardedCache) Put(key string, s *tls.ClientSessionState) {
	_ = elsewhere("TLSConfig.ClientSessionCache", func() { g.cache.Put(key, s) })
}

// mayStartTLSLocked says why TLS cannot begin.
func (c *Conn) mayStartTLSLocked(config *tls.Config) error {
	why := ""
	switch {
	case c.ended():
		return c.endedLocked("starttls")
	case c.relayed():
		return c.relayedLocked("starttls")
	case config == nil:
		why = "the config is nil"
	case c.tls() != nil:
		why = "the connection has TLS already"
	case c.handshaking():
		why = "Preface is not done"
	case c.atEOF() || c.sendEnd != sendOpen || !c.outputFree():
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
