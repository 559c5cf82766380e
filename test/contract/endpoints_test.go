//go:build linux

package contract

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// at is an address to connect to.
type at struct{ to net.Addr }

func (a at) Addr() net.Addr { return a.to }

// one of each kind: plain TCP, TLS, a unix socket, and behind a proxy.
func eachKind(t *testing.T) tcpio.ListenerOptions {
	return tcpio.ListenerOptions{Addr: "127.0.0.1:0", Proxies: localhost, More: []tcpio.Endpoint{
		{Name: "secure", Addr: "127.0.0.1:0", TLSConfig: testnet.ServerTLS()},
		{Name: "local", Network: "unix", Addr: filepath.Join(t.TempDir(), "s")},
		{Name: "proxied", Addr: "127.0.0.1:0", Preface: readHeader},
	}}
}

func TestEndpointsShareAListener(t *testing.T) {
	for _, route := range harness.Routes {
		t.Run(route, func(t *testing.T) {
			l, opened, closed := harness.Route(t, route, eachKind(t), func(ev tcpio.Event) error {
				if _, ok := ev.(tcpio.Readable); ok {
					c := tcpio.ConnOf(ev)
					if err := harness.EchoConn(c); err == io.EOF {
						c.Close()
					}
				}
				return nil
			})
			addrs := l.Addrs()
			if len(addrs) != 4 || addrs[0] != l.Addr() {
				t.Fatalf("Addrs are %v", addrs)
			}
			for round := range 3 {
				for i, name := range []string{"", "secure", "local", "proxied"} {
					peer := testnet.Dial(t, at{addrs[i]})
					var client io.ReadWriter = peer
					switch name {
					case "secure":
						client = tls.Client(peer, testnet.ClientTLS())
					case "proxied":
						testnet.Send(t, peer, header)
					}
					testnet.Ping(t, client, fmt.Sprint("hello ", round))
					c := testnet.Receive(t, "Opened", opened)
					if c.Endpoint() != name || c.LocalAddr().String() != addrs[i].String() {
						t.Errorf("%v came by %q, %v, want %q, %v", c, c.Endpoint(), c.LocalAddr(), name, addrs[i])
					}
					if (c.TLS() != nil) != (name == "secure") || c.FromProxy() != (name == "proxied") {
						t.Errorf("%q: TLS %v, from a proxy %v", name, c.TLS() != nil, c.FromProxy())
					}
					if name == "proxied" {
						checkProxied(t, c)
					}
					peer.Close()
					testnet.Receive(t, "Closed", closed)
				}
			}
			if s := l.Stats(); s.Accepted != 12 {
				t.Errorf("%d accepted", s.Accepted)
			}
		})
	}
}

// A listener whose own address is none listens on More alone. Adopted and dialed connections are
// the own address's.
func TestEndpointsOfAListenerWithoutAnAddress(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{Network: "none", More: []tcpio.Endpoint{{Name: "a", Addr: "127.0.0.1:0"}, {Name: "b", Addr: "127.0.0.1:0"}}})
	addrs := l.Addrs()
	if len(addrs) != 2 || l.Addr().String() != "none" {
		t.Fatalf("Addr is %v, Addrs %v", l.Addr(), addrs)
	}
	for i, name := range []string{"a", "b"} {
		testnet.Dial(t, at{addrs[i]})
		if c := harness.Expect[tcpio.Opened](t, events).Conn; c.Endpoint() != name {
			t.Errorf("the endpoint is %q, want %q", c.Endpoint(), name)
		}
	}
	if _, err := l.Dial(testnet.Context(t), "tcp", addrs[0].String()); err != nil {
		t.Fatal(err)
	}
	names := map[string]int{}
	for range 2 {
		names[harness.Expect[tcpio.Opened](t, events).Conn.Endpoint()]++
	}
	if names[""] != 1 || names["a"] != 1 {
		t.Errorf("endpoints %v", names)
	}
}

func TestLimitsHoldForAllEndpointsTogether(t *testing.T) {
	o := eachKind(t)
	o.MaxConns, o.MaxConnsPerIP, o.RefuseReply = 3, 2, []byte("full\n")
	l, events := harness.Manual(t, o)
	addrs := l.Addrs()
	testnet.Dial(t, at{addrs[0]})
	harness.Expect[tcpio.Opened](t, events)
	client := tls.Client(testnet.Dial(t, at{addrs[1]}), testnet.ClientTLS())
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	harness.Expect[tcpio.Opened](t, events)
	refused := func(i int, reply string) {
		t.Helper()
		peer := testnet.Dial(t, at{addrs[i]})
		if got, _ := io.ReadAll(peer); string(got) != reply {
			t.Errorf("endpoint %d: the refused peer read %q, want %q", i, got, reply)
		}
		peer.Close()
	}
	refused(0, "full\n")
	refused(1, "")                            // of TLS
	harness.Expect[tcpio.Readable](t, events) // TLS may have read bytes already
	testnet.Dial(t, at{addrs[2]})
	harness.Expect[tcpio.Opened](t, events)
	refused(2, "full\n")
	refused(3, "full\n")
	if n := l.Stats().Refused; n != (tcpio.RefusedStats{Conns: 2, PerIP: 2}) {
		t.Errorf("refused %+v", n)
	}
}

// While the stream is full no endpoint accepts, and afterwards all do.
func TestAFullStreamPausesAllEndpoints(t *testing.T) {
	o := eachKind(t)
	o.EventBuffer = 1
	l, events := harness.Manual(t, o)
	const each = 20
	addrs := l.Addrs()
	for range each {
		for _, i := range []int{0, 2} {
			testnet.Dial(t, at{addrs[i]})
		}
	}
	testnet.WaitFor(t, "the stream is full", func() bool { return l.Len() > 1 })
	names := map[string]int{}
	for range 2 * each {
		names[harness.Expect[tcpio.Opened](t, events).Conn.Endpoint()]++
	}
	if names[""] != each || names["local"] != each {
		t.Errorf("accepted %v", names)
	}
}

// Shutdown serves what the backlog of each holds; then all sockets are closed, and the paths gone.
func TestEndOfAllEndpoints(t *testing.T) {
	for name, end := range map[string]func(*tcpio.Listener) error{
		"Close":    (*tcpio.Listener).Close,
		"Shutdown": func(l *tcpio.Listener) error { return l.Shutdown(context.Background()) },
		"unserved": (*tcpio.Listener).Close,
	} {
		t.Run(name, func(t *testing.T) {
			o := eachKind(t)
			o.DrainTimeout = testnet.Limit
			l := harness.Listen(t, o)
			addrs := l.Addrs()
			var peers []net.Conn
			if name == "Shutdown" {
				for range 3 {
					for _, i := range []int{0, 2} {
						peers = append(peers, testnet.Dial(t, at{addrs[i]})) // in the backlogs
					}
				}
			}
			if name != "unserved" {
				events := l.Events()
				opened := make(chan int, 1)
				go func() {
					n := 0
					for ev := range events {
						switch ev := ev.(type) {
						case tcpio.Opened:
							n++
						case tcpio.Draining:
							_, _ = ev.Conn.TryWrite([]byte("bye"))
							ev.Conn.Close()
						}
					}
					opened <- n
				}()
				served := harness.Go(context.Background(), l)
				if name == "Shutdown" {
					testnet.WaitFor(t, "the loops run", func() bool { return l.Len() > 0 })
					for range 3 {
						for _, i := range []int{0, 2} {
							peers = append(peers, testnet.Dial(t, at{addrs[i]}))
						}
					}
				}
				done := make(chan error, 1)
				go func() { done <- end(l) }()
				for _, p := range peers {
					testnet.ExpectBytes(t, p, "bye")
					testnet.ExpectEOF(t, p)
					p.Close()
				}
				if err := testnet.Receive(t, "the end", done); err != nil {
					t.Error(err)
				}
				if err := testnet.Receive(t, "the end of Serve", served); err != nil {
					t.Error(err)
				}
				if n := testnet.Receive(t, "the end of the stream", opened); n != len(peers) {
					t.Errorf("%d of %d were served", n, len(peers))
				}
			} else if err := end(l); err != nil {
				t.Error(err)
			}
			for _, a := range addrs {
				if c, err := net.Dial(a.Network(), a.String()); err == nil {
					c.Close()
					t.Errorf("%v still listens", a)
				}
			}
			if _, err := os.Stat(addrs[2].String()); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the path of the unix socket: %v", err)
			}
			if _, err := l.Files(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Files after Close: %v", err)
			}
		})
	}
}

// The sockets go to a successor, in the order of Addrs, and no peer is refused in between.
func TestFilesHandAllSocketsOver(t *testing.T) {
	first := harness.Listen(t, eachKind(t))
	addrs := first.Addrs()
	files, err := first.Files()
	if err != nil || len(files) != len(addrs) {
		t.Fatal(files, err)
	}
	var lns []net.Listener
	for _, f := range files {
		ln, err := net.FileListener(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		lns = append(lns, ln)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	waiting := testnet.Dial(t, at{addrs[2]})
	o := tcpio.ListenerOptions{Listener: lns[0], More: []tcpio.Endpoint{
		{Listener: lns[1], TLSConfig: testnet.ServerTLS()}, {Name: "local", Listener: lns[2]}, {Listener: lns[3]},
	}}
	l := harness.Stream(t, o, harness.Echo(t))
	for i, a := range l.Addrs() {
		if a.String() != addrs[i].String() {
			t.Errorf("the successor is at %v, want %v", a, addrs[i])
		}
	}
	testnet.Ping(t, waiting, "waited")
	client := testnet.DialTLS(t, at{addrs[1]}, testnet.ClientTLS())
	testnet.Ping(t, client, "secure")
	client.Close()
	testnet.Ping(t, testnet.Dial(t, l), "plain")
}

func TestBadEndpointIsAnErrorThatNamesTheField(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	given, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer given.Close()
	path := filepath.Join(t.TempDir(), "s")
	free := tcpio.Endpoint{Network: "unix", Addr: path}
	for _, tc := range []struct {
		field string
		bad   tcpio.Endpoint
		err   error
	}{
		{field: "More[2].Addr: empty"},
		{field: "More[2].Addr: set together with Listener", bad: tcpio.Endpoint{Addr: "x", Listener: given}},
		{field: "More[2].Network: unknown", bad: tcpio.Endpoint{Addr: "x", Network: "udp"}},
		{field: "More[2].Network: none", bad: tcpio.Endpoint{Network: "none"}},
		{field: "More[2].Listener: a nil", bad: tcpio.Endpoint{Listener: (*net.TCPListener)(nil)}},
		{field: "More[2].TLSConfig: ", bad: tcpio.Endpoint{Addr: "127.0.0.1:0", TLSConfig: new(tls.Config)}},
		{field: "More[2]: listen tcp " + taken.Addr().String(), bad: tcpio.Endpoint{Addr: taken.Addr().String()}, err: syscall.EADDRINUSE},
		{field: "More[2]: listen unix /nowhere/", bad: tcpio.Endpoint{Network: "unix", Addr: "/nowhere/s"}, err: syscall.ENOENT},
	} {
		more := []tcpio.Endpoint{{Listener: given}, free, tc.bad}
		l, err := tcpio.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0", More: more})
		if err == nil {
			l.Close()
			t.Errorf("%s: was taken", tc.field)
			continue
		}
		if !strings.Contains(err.Error(), "ListenerOptions."+tc.field) || tc.err != nil && !errors.Is(err, tc.err) {
			t.Errorf("the error does not say %q: %v", tc.field, err)
		}
		if more[1].Addr != path || more[0].Listener != given {
			t.Error("the caller's slice was changed")
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the path of what was opened: %v", tc.field, err)
		}
		if c, err := net.Dial("tcp", given.Addr().String()); err != nil {
			t.Errorf("%s: the given listener was closed: %v", tc.field, err)
		} else {
			c.Close()
		}
	}
	if _, err := tcpio.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0", More: make([]tcpio.Endpoint, 256)}); err == nil ||
		!strings.Contains(err.Error(), "ListenerOptions.More: over 255") {
		t.Errorf("256 endpoints: %v", err)
	}
	o := tcpio.ListenerOptions{Addr: "127.0.0.1:0", Proxies: localhost, More: []tcpio.Endpoint{{Addr: "127.0.0.1:0"}}}
	if _, err := tcpio.Listen(&o); err == nil || !strings.Contains(err.Error(), "Proxies") {
		t.Errorf("Proxies without a Preface: %v", err)
	}
}
