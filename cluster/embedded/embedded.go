package embedded

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// A Server is this process's part of an embedded cluster. Its methods may be called from any
// goroutine.
type Server struct {
	// Immutable.
	nc   *nats.Conn
	stop func() // ends the server and gives back what it holds in the directory
	once sync.Once
}

// Conn returns the connection to the cluster, for cluster.Open. It reconnects for ever, and has no
// reconnect buffer: publishing fails while it is disconnected. It is the same on every call, and
// belongs to the Server: end it by Close.
func (s *Server) Conn() *nats.Conn { return s.nc }

// Close sends what the connection holds, for at most a second, closes it, stops this process's
// server, and gives up its place in the directory. Close the cluster.Node before. Close blocks
// until the server has stopped, as a rule for some milliseconds. A second call waits for the first
// and does nothing. It returns nil; the error is there for io.Closer.
func (s *Server) Close() error {
	s.once.Do(func() {
		if s.nc.IsConnected() {
			// The error says that the server has not answered within the second: then nobody has
			// what is left.
			_ = s.nc.FlushTimeout(time.Second)
		}
		s.nc.Close()
		s.stop()
	})
	return nil
}

// connOptions are what cluster.Open requires of a connection, and what suits a server that is near:
// an attempt to reconnect every tenth of a second, and a hung server noticed after 6 s.
func connOptions(more []nats.Option) []nats.Option {
	return append([]nats.Option{
		nats.ReconnectBufSize(-1),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(100 * time.Millisecond),
		nats.ReconnectJitter(50*time.Millisecond, 50*time.Millisecond),
		nats.PingInterval(2 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.FlusherTimeout(5 * time.Second),
		nats.IgnoreAuthErrorAbort(),
	}, more...)
}

// greeting is how long a client and its server may take to greet each other. NATS has 2 s, which is
// little on a busy machine, and both are here.
const greeting = 10 * time.Second

// serverOptions are what all servers here have in common: no signal handlers, a port for clients on
// loopback alone, routes whose death is noticed after 8 s although nothing is sent.
//
// A server that forms a cluster must have a port for clients. Nobody is to use it but for a store,
// and nobody knows the password: the process's own connection is a pipe.
func serverOptions(name string) *server.Options {
	return &server.Options{
		ServerName:             name,
		Host:                   "127.0.0.1",
		Port:                   server.RANDOM_PORT,
		Username:               "tcpio",
		Password:               rand.Text(),
		AuthTimeout:            greeting.Seconds(),
		NoSigs:                 true,
		DisableJetStreamBanner: true,
		Cluster: server.ClusterOpts{
			PingInterval: 2 * time.Second,
			MaxPingsOut:  3,
		},
	}
}

// startServer starts a server and waits until it takes connections. It is the caller's to stop.
func startServer(ctx context.Context, o *server.Options, log *slog.Logger) (*server.Server, error) {
	srv, err := server.NewServer(o)
	if err != nil {
		return nil, fmt.Errorf("embedded: %w", err)
	}
	l := &serverLog{log: log}
	// Without a logger nothing is formatted but what is fatal.
	srv.SetLoggerV2(l, false, false, false)
	go srv.Start()
	for !srv.ReadyForConnections(10 * time.Millisecond) {
		err := l.fatal()
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			stopServer(srv)
			return nil, fmt.Errorf("embedded: server did not start: %w", err)
		}
	}
	return srv, nil
}

// connect connects this process with its own server.
func connect(srv *server.Server, so *server.Options, more []nats.Option) (*nats.Conn, error) {
	nc, err := nats.Connect("", connOptions(append([]nats.Option{
		nats.InProcessServer(srv), nats.UserInfo(so.Username, so.Password), nats.Timeout(greeting)}, more...))...)
	if err != nil {
		return nil, fmt.Errorf("embedded: %w", err)
	}
	return nc, nil
}

func stopServer(srv *server.Server) {
	srv.Shutdown()
	srv.WaitForShutdown()
}

// A serverLog gives a server's lines to a slog.Logger, and keeps the reason why it cannot start:
// with a logger of its own, the server would end the process.
type serverLog struct {
	log *slog.Logger // nil: none

	// Guarded by mu.
	mu  sync.Mutex
	why error
}

func (l *serverLog) line(level slog.Level, format string, v []any) {
	if l.log != nil && l.log.Enabled(context.Background(), level) {
		l.log.Log(context.Background(), level, fmt.Sprintf(format, v...), "from", "nats-server")
	}
}

func (l *serverLog) Noticef(format string, v ...any) { l.line(slog.LevelInfo, format, v) }
func (l *serverLog) Warnf(format string, v ...any)   { l.line(slog.LevelWarn, format, v) }
func (l *serverLog) Errorf(format string, v ...any)  { l.line(slog.LevelError, format, v) }
func (l *serverLog) Debugf(format string, v ...any)  { l.line(slog.LevelDebug, format, v) }
func (l *serverLog) Tracef(format string, v ...any)  { l.line(slog.LevelDebug, format, v) }

func (l *serverLog) Fatalf(format string, v ...any) {
	l.line(slog.LevelError, format, v)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.why = fmt.Errorf(format, v...)
}

func (l *serverLog) fatal() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.why
}
