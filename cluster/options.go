package cluster

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/rabbit-backend/tcpio"
)

// Options are those of Open. The zero value works.
type Options struct {
	// Name is that of the cluster: nodes with another name on the same NATS do not see this one. ""
	// is "default".
	Name string
	// Heartbeat is how often the node says that it is there, 1 s if 0. A node that has not been
	// heard of for 4 of its heartbeats is down. 50 ms at least.
	Heartbeat time.Duration
	// Buffer is how many messages may wait for their local fan-out, 65,536 if 0. What finds no room
	// is lost, and told as Lost.
	Buffer int
	// Linger is how long a topic without members here stays subscribed, 5 s if 0: against members
	// that come and go.
	Linger time.Duration
	// Sessions is for Claim; without it that fails with errors.ErrUnsupported.
	Sessions *Sessions
	// Slow and Notice are those of the topics' groups, see tcpio.Group.
	Slow   tcpio.SlowPolicy
	Notice []byte
	// Logger gets a line when nodes come and go, when NATS does, and for what is malformed. nil is
	// none.
	Logger *slog.Logger
}

const (
	maxName     = 100     // bytes of Options.Name once encoded
	missed      = 4       // heartbeats that are not heard of a node that is down
	maxBuffer   = 1 << 24 // messages
	minBeat     = 50 * time.Millisecond
	maxBeat     = time.Minute
	defaultBeat = time.Second
)

// withDefaults returns a checked copy.
func (o *Options) withDefaults() (Options, error) {
	if o == nil {
		return Options{}, errors.New("cluster: Open: the options are nil")
	}
	d := *o
	var err error
	if d.Sessions, err = o.Sessions.withDefaults(); err != nil {
		return d, err
	}
	d.Notice = append([]byte(nil), o.Notice...)
	if d.Name == "" {
		d.Name = "default"
	}
	if d.Heartbeat == 0 {
		d.Heartbeat = defaultBeat
	}
	if d.Buffer == 0 {
		d.Buffer = 65536
	}
	if d.Linger == 0 {
		d.Linger = 5 * time.Second
	}
	switch {
	case len(encodeName(d.Name)) > maxName:
		return d, fmt.Errorf("cluster: Options.Name: %w: it has %d bytes once encoded, %d are the limit",
			ErrName, len(encodeName(d.Name)), maxName)
	case d.Heartbeat < minBeat || d.Heartbeat > maxBeat:
		return d, fmt.Errorf("cluster: Options.Heartbeat is %v: it must be between %v and %v, or 0 for %v",
			d.Heartbeat, minBeat, maxBeat, defaultBeat)
	case d.Buffer < 0 || d.Buffer > maxBuffer:
		return d, fmt.Errorf("cluster: Options.Buffer is %d: it must be between 1 and %d, or 0 for 65536",
			d.Buffer, maxBuffer)
	case d.Linger < 0:
		return d, fmt.Errorf("cluster: Options.Linger is %v: it must not be negative", d.Linger)
	case d.Slow != tcpio.SkipSlow && d.Slow != tcpio.CloseSlow:
		return d, fmt.Errorf("cluster: Options.Slow is %v: it is no policy", d.Slow)
	}
	return d, nil
}

// NATSOptions returns what a node's NATS connection needs, for nats.Connect, before your own
// options (addresses, TLS, credentials): no reconnect buffer, which Open insists on; reconnecting
// for ever, with jitter, every 2 s; writes that block for 5 s at most, which bounds how long
// Publish does; a server that does not answer for 20 s counts as gone. NATS' client prints its
// asynchronous errors to stderr unless you add nats.ErrorHandler.
func NATSOptions() []nats.Option {
	return []nats.Option{
		nats.ReconnectBufSize(-1),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(2 * time.Second),
		nats.ReconnectJitter(time.Second, time.Second),
		nats.FlusherTimeout(5 * time.Second),
		nats.PingInterval(10 * time.Second),
		nats.MaxPingsOutstanding(2),
	}
}

// checkConn says what is wrong with nc.
func checkConn(nc *nats.Conn) error {
	switch {
	case nc == nil:
		return errors.New("cluster: Open: the NATS connection is nil")
	case nc.IsClosed():
		return fmt.Errorf("cluster: Open: the NATS connection: %w", nats.ErrConnectionClosed)
	case nc.Opts.ReconnectBufSize >= 0:
		return fmt.Errorf("cluster: Open: the NATS connection has a reconnect buffer of %d bytes: it would "+
			"report success for messages that nobody gets, or deliver them late; connect with nats.ReconnectBufSize(-1)",
			nc.Opts.ReconnectBufSize)
	case nc.Opts.NoEcho:
		return errors.New("cluster: Open: the NATS connection has NoEcho: members here would not get what this node publishes")
	case nc.IsConnected() && !nc.HeadersSupported():
		return errors.New("cluster: Open: the NATS server has no headers, without which nobody learns that nobody has a key: it must be 2.2 or later")
	}
	return nil
}
