package embedded

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"
)

// The server's lock, its address and what it stores, in the directory.
var (
	storeLock = filepath.Join("store", "lock")
	storeAddr = filepath.Join("store", "addr")
	storeData = filepath.Join("store", "jetstream")
)

// How long a server that lives may take to accept a connection and to prove that it knows the
// secret.
const storeDialTimeout = 2 * time.Second

// A store is how a process reaches the one server of a directory. NATS' client calls Dial whenever
// it wants a connection, for the first time and after a loss. Whoever then finds that no process
// runs the server, runs it: there is nothing that watches.
type store struct {
	// Immutable.
	dir  *directory
	who  *identity
	opts *Options
	ctx  context.Context // ends with stop

	// Guarded by mu, which is held while the server starts.
	mu     sync.Mutex
	closed bool
	srv    *server.Server // nil while another process runs it
	lock   *os.File       // held as long as srv runs
	last   error          // why the last Dial failed
}

func openStore(ctx context.Context, dir *directory, opts *Options) (*Server, error) {
	unlock, err := dir.lock(ctx)
	if err != nil {
		return nil, err
	}
	who, err := dir.prepare("store")
	unlock()
	if err != nil {
		return nil, err
	}
	running, stop := context.WithCancel(context.Background())
	s := &store{dir: dir, who: who, opts: opts, ctx: running}
	for {
		// The address is the dialer's business.
		nc, err := nats.Connect("nats://127.0.0.1", connOptions(append([]nats.Option{nats.SetCustomDialer(s)}, opts.Conn...))...)
		if err == nil {
			return &Server{nc: nc, stop: func() { stop(); s.close() }}, nil
		}
		select {
		case <-ctx.Done():
			stop()
			err = errors.Join(err, s.why())
			s.close()
			return nil, fmt.Errorf("embedded: no server in %s: %w: %w", dir.path, ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Dial returns a connection to the server, in this process by a pipe, in another by TLS.
func (s *store) Dial(string, string) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	conn, err := s.dialLocked()
	s.last = err
	return conn, err
}

// SkipTLSHandshake tells NATS' client that Dial has done it.
func (s *store) SkipTLSHandshake() bool { return true }

func (s *store) dialLocked() (net.Conn, error) {
	if s.closed {
		return nil, net.ErrClosed
	}
	if s.srv == nil {
		lock, err := tryLock(s.dir.file(storeLock))
		if err == nil {
			err = s.takeOverLocked(lock)
		}
		if err != nil && !errors.Is(err, errLocked) {
			return nil, err
		}
	}
	if s.srv != nil {
		return s.srv.InProcessConn()
	}
	addr, err := os.ReadFile(s.dir.file(storeAddr))
	if err != nil {
		return nil, err // it is about to start
	}
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: storeDialTimeout}, Config: s.who.tls}
	ctx, cancel := context.WithTimeout(s.ctx, storeDialTimeout)
	defer cancel()
	return d.DialContext(ctx, "tcp", string(addr))
}

// takeOverLocked starts the server. No other process runs one, as the lock is ours.
func (s *store) takeOverLocked(lock *os.File) error {
	srv, err := s.startLocked()
	if err != nil {
		lock.Close()
		return err
	}
	s.srv, s.lock = srv, lock
	return nil
}

func (s *store) startLocked() (*server.Server, error) {
	// The address of the one before.
	if err := os.Remove(s.dir.file(storeAddr)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	so := serverOptions(nuid.Next())
	so.Username, so.Password = "", "" // who has the certificate may connect
	so.TLSConfig, so.TLS, so.TLSVerify = s.who.tls, true, true
	so.TLSHandshakeFirst = true
	so.TLSTimeout = 5
	so.Cluster = server.ClusterOpts{}
	so.PingInterval, so.MaxPingsOut = 2*time.Second, 3
	so.JetStream = true
	so.StoreDir = s.dir.file(storeData)
	srv, err := startServer(s.ctx, so, s.opts.Logger)
	if err != nil {
		return nil, err
	}
	unlock, err := s.dir.lock(s.ctx)
	if err == nil {
		var f *os.File
		f, err = s.dir.put(storeAddr, srv.Addr().String())
		unlock()
		if err == nil {
			err = f.Close()
		}
	}
	if err != nil {
		stopServer(srv)
		return nil, fmt.Errorf("embedded: %w", err)
	}
	return srv, nil
}

func (s *store) why() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// close stops the server, if it runs here, and lets another process take over.
func (s *store) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.srv == nil {
		return
	}
	stopServer(s.srv)
	s.lock.Close()
	s.srv, s.lock = nil, nil
}
