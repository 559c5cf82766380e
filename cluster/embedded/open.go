package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"
)

// Options says where processes on one machine find each other. The struct is copied.
type Options struct {
	// Dir is a directory on a local file system, for this cluster alone. It is made with mode 0700
	// if there is none. One that others may enter, or that belongs to another user, is an error.
	// Processes that name the same directory form one cluster.
	Dir string
	// Store gives the cluster JetStream, for sessions and recorded topics with one replica. One
	// process then runs the server for all; see the package's comment. What is stored lies in the
	// directory and outlives all processes. Of what was acknowledged, a process that is killed loses
	// nothing, a machine that loses power up to the last two minutes. All processes of a directory
	// have the same Store.
	Store bool
	// Logger gets the lines of the NATS server; nil is none.
	Logger *slog.Logger
	// Conn are further options of the connection, such as nats.Name.
	Conn []nats.Option
}

// Open joins this process to the cluster of a directory, or begins it. Any number of processes may
// do so in any order, without configuration, and more than once in one process. Open blocks until
// the process is connected with all others that live, or ctx ends; without another process that
// takes some 50 ms. A process that hangs holds it up for at most 2 s.
//
// What a process leaves behind that was killed is removed by the next Open. The processes must be
// of one user. Errors name the field or the file. On other systems than Linux the error matches
// errors.ErrUnsupported.
func Open(ctx context.Context, o *Options) (*Server, error) {
	if o == nil {
		return nil, errors.New("embedded: Options is nil")
	}
	opts := *o
	dir, err := openDirectory(opts.Dir)
	if err != nil {
		return nil, err
	}
	if opts.Store {
		return openStore(ctx, dir, &opts)
	}
	return openMesh(ctx, dir, &opts)
}

// openMesh starts a server of the full mesh. Who holds the directory's lock has its server running
// and in the directory before another looks, so of two processes the later always dials the
// earlier, and goes on doing so after an outage.
func openMesh(ctx context.Context, dir *directory, opts *Options) (*Server, error) {
	unlock, err := dir.lock(ctx)
	if err != nil {
		return nil, err
	}
	srv, so, place, earlier, err := joinMesh(ctx, dir, opts)
	unlock()
	if err != nil {
		return nil, err
	}
	stop := func() {
		// First the name, so that nobody begins to dial what is going to end. Without it a
		// process dials in vain, for ever: no harm, so an error is none either.
		_ = os.Remove(dir.file(filepath.Join("mesh", srv.Name())))
		stopServer(srv)
		place.Close()
	}
	if err := waitForRoutes(ctx, dir, srv, earlier); err != nil {
		stop()
		return nil, err
	}
	nc, err := connect(srv, so, opts.Conn)
	if err != nil {
		stop()
		return nil, err
	}
	return &Server{nc: nc, stop: stop}, nil
}

// joinMesh starts the server and puts it into the directory, which is locked.
func joinMesh(ctx context.Context, dir *directory, opts *Options) (
	srv *server.Server, so *server.Options, place *os.File, earlier []member, err error) {
	who, err := dir.prepare("mesh")
	if err != nil {
		return nil, nil, nil, nil, err
	}
	earlier, err = dir.members()
	if err != nil {
		return nil, nil, nil, nil, err
	}
	id := nuid.Next()
	so = serverOptions(id)
	so.Cluster.Name = "embedded"
	so.Cluster.Host, so.Cluster.Port = "127.0.0.1", server.RANDOM_PORT
	so.Cluster.Username, so.Cluster.Password = "tcpio", who.password
	so.Cluster.TLSConfig = who.tls
	so.Cluster.TLSTimeout = 5
	so.Cluster.ConnectBackoff = true // for those that have ended
	for _, m := range earlier {
		so.Routes = append(so.Routes, routeURL(m.addr, who.password))
	}
	srv, err = startServer(ctx, so, opts.Logger)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	place, err = dir.put(filepath.Join("mesh", id), srv.ClusterAddr().String())
	if err != nil {
		stopServer(srv)
		return nil, nil, nil, nil, fmt.Errorf("embedded: %w", err)
	}
	return srv, so, place, earlier, nil
}

func routeURL(addr, password string) *url.URL {
	return &url.URL{Scheme: "nats-route", Host: addr, User: url.UserPassword("tcpio", password)}
}

// hungAfter is how long Open waits for a process that lives and does not answer.
const hungAfter = 2 * time.Second

// waitForRoutes waits until the server is connected with those that were there before it, as far as
// they still live.
func waitForRoutes(ctx context.Context, dir *directory, srv *server.Server, earlier []member) error {
	hung := time.After(hungAfter)
	for {
		routes, err := srv.Routez(nil)
		if err != nil {
			return fmt.Errorf("embedded: %w", err)
		}
		connected := make(map[string]bool)
		for _, r := range routes.Routes {
			connected[r.RemoteName] = true
		}
		missing := 0
		for _, m := range earlier {
			if connected[m.id] {
				continue
			}
			alive, err := dir.alive(filepath.Join("mesh", m.id))
			if err != nil {
				return err
			}
			if alive {
				missing++
			}
		}
		if missing == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("embedded: %d processes of %s do not answer: %w", missing, dir.path, ctx.Err())
		case <-hung:
			return nil
		case <-time.After(2 * time.Millisecond):
		}
	}
}
