//go:build linux

package proxyproto

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	pp "github.com/pires/go-proxyproto"

	"github.com/rabbit-backend/tcpio"
)

// limit is how long a test waits for something that must happen.
const limit = 20 * time.Second

var localhost = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("::1/128")}

// serve serves until the end of the test.
func serve(t testing.TB, o tcpio.ListenerOptions, opts Options) (*tcpio.Listener, <-chan tcpio.Event) {
	t.Helper()
	if o.Addr == "" {
		o.Addr = "127.0.0.1:0"
	}
	o.Preface = Accept(opts)
	l, err := tcpio.Listen(&o)
	if err != nil {
		t.Fatal(err)
	}
	events := l.Events()
	served := make(chan error, 1)
	go func() { served <- l.Serve(context.Background()) }()
	t.Cleanup(func() {
		go l.Close()
		for range events {
		}
		if err := <-served; err != nil && !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	return l, events
}

// next takes the next event, which must be an E; a Readable that was not asked for is passed over.
func next[E tcpio.Event](t testing.TB, events <-chan tcpio.Event) E {
	t.Helper()
	late := time.After(limit)
	for {
		select {
		case ev := <-events:
			if e, ok := ev.(E); ok {
				return e
			}
			if _, ok := ev.(tcpio.Readable); !ok {
				t.Fatalf("got %T %v", ev, ev)
			}
		case <-late:
			t.Fatal("no event")
		}
	}
}

// input reads n bytes of the stream's only connection.
func input(t testing.TB, events <-chan tcpio.Event, n int) string {
	t.Helper()
	var got []byte
	for buf := make([]byte, n); len(got) < n; {
		m, err := next[tcpio.Readable](t, events).Conn.TryRead(buf)
		got = append(got, buf[:m]...)
		if err != nil && err != tcpio.ErrWouldBlock {
			t.Fatalf("TryRead: %v behind %q", err, got)
		}
	}
	return string(got)
}

func dial(t testing.TB, l *tcpio.Listener, from string, say ...string) net.Conn {
	t.Helper()
	d := net.Dialer{Timeout: limit}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	c, err := d.Dial(l.Addr().Network(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(limit))
	for _, s := range say {
		if _, err := io.WriteString(c, s); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// Over a real connection, whole and a byte at a time.
func TestRemoteAddrIsTheClients(t *testing.T) {
	l, events := serve(t, tcpio.ListenerOptions{Proxies: localhost}, Options{})
	for _, tc := range headers {
		for _, size := range []int{1, len(tc.head), len(tc.head) + 5} {
			if size == 1 && len(tc.head) > 500 {
				continue
			}
			var pieces []string
			for p := range slices.Chunk([]byte(tc.head+"hello"), size) {
				pieces = append(pieces, string(p))
			}
			peer := dial(t, l, "", pieces...)
			c := next[tcpio.Opened](t, events).Conn
			if got := input(t, events, 5); got != "hello" {
				t.Errorf("%s: read %q", tc.name, got)
			}
			want := tc.client
			if want == "" {
				want = peer.LocalAddr().String()
			}
			if got := c.RemoteAddr(); got.String() != want {
				t.Errorf("%s: RemoteAddr is %v, want %v", tc.name, got, want)
			}
			if h := HeaderOf(c); h == nil || h.Command.IsLocal() != tc.local {
				t.Errorf("%s: the header is %+v", tc.name, h)
			}
			c.Abort()
			next[tcpio.Closed](t, events)
		}
	}
}

func TestOthers(t *testing.T) {
	const stranger = "127.0.0.2"
	refused := func(t *testing.T, l *tcpio.Listener, events <-chan tcpio.Event, say string, why error) {
		t.Helper()
		d := net.Dialer{Timeout: limit, LocalAddr: &net.TCPAddr{IP: net.ParseIP(stranger)}}
		if c, err := d.Dial("tcp", l.Addr().String()); err == nil { // else it is reset already
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(limit))
			_, _ = io.WriteString(c, say)
			if _, err := c.Read(make([]byte, 1)); err == nil { // a reset, unless Write has met that
				t.Error("the stranger was served")
			}
		}
		if err := next[tcpio.Failed](t, events).Err; !errors.Is(err, why) {
			t.Errorf("Failed: %v", err)
		}
	}
	header := headers[0].head
	t.Run("refused", func(t *testing.T) {
		l, events := serve(t, tcpio.ListenerOptions{Proxies: localhost}, Options{})
		refused(t, l, events, header, errOthers)
	})
	t.Run("inspected", func(t *testing.T) {
		l, events := serve(t, tcpio.ListenerOptions{Proxies: localhost}, Options{Others: InspectOthers})
		refused(t, l, events, header, errForged)
		for _, say := range [][]string{{"GET /"}, {"P", "ROXIES"}, {"\r\n"}, {"\r", "\nx"}} {
			if say[0] == "\r\n" {
				say = []string{"\r\n\r\nx"}
			}
			peer := dial(t, l, stranger, say...)
			c := next[tcpio.Opened](t, events).Conn
			want := strings.Join(say, "")
			if got := input(t, events, len(want)); got != want || c.RemoteAddr().String() != peer.LocalAddr().String() || HeaderOf(c) != nil {
				t.Errorf("read %q of %v", got, c)
			}
			c.Abort()
			next[tcpio.Closed](t, events)
		}
	})
	t.Run("opened", func(t *testing.T) {
		l, events := serve(t, tcpio.ListenerOptions{Proxies: localhost}, Options{Others: OpenOthers})
		peer := dial(t, l, stranger)
		c := next[tcpio.Opened](t, events).Conn
		_, _ = io.WriteString(peer, header)
		if got := input(t, events, len(header)); got != header || c.RemoteAddr().String() != peer.LocalAddr().String() {
			t.Errorf("read %q of %v", got, c)
		}
	})
	t.Run("a proxy without a header", func(t *testing.T) {
		for _, o := range []Others{RefuseOthers, InspectOthers, OpenOthers} {
			l, events := serve(t, tcpio.ListenerOptions{Proxies: localhost}, Options{Others: o})
			dial(t, l, "", "GET /")
			if err := next[tcpio.Failed](t, events).Err; !errors.Is(err, errNoHeader) {
				t.Errorf("Failed: %v", err)
			}
		}
	})
	defer func() {
		if recover() == nil {
			t.Error("an unknown Others was taken")
		}
	}()
	Accept(Options{Others: 7})
}

func TestTimeLimit(t *testing.T) {
	l, events := serve(t, tcpio.ListenerOptions{Proxies: localhost, PrefaceTimeout: 50 * time.Millisecond}, Options{})
	d := net.Dialer{Timeout: limit}
	if peer, err := d.Dial("tcp", l.Addr().String()); err == nil { // else it is reset already
		defer peer.Close()
		_, _ = io.WriteString(peer, headers[0].head[:20])
	}
	var late *tcpio.TimeoutError
	if err := next[tcpio.Failed](t, events).Err; !errors.As(err, &late) || late.Kind != tcpio.TimeoutPreface {
		t.Errorf("Failed: %v", err)
	}
}

// Two tcpio servers in a row: the second knows the first one's client, and the third that of the
// first of all.
func TestSendTellsTheUpstream(t *testing.T) {
	back, far := serve(t, tcpio.ListenerOptions{Proxies: localhost}, Options{})
	front, near := serve(t, tcpio.ListenerOptions{Proxies: localhost, Network: "tcp", Addr: "127.0.0.1:0"}, Options{Others: OpenOthers})
	for _, tc := range []struct{ from, say, client, dest string }{
		{"127.0.0.3", "", "", front.Addr().String()},
		{"", headers[0].head, headers[0].client, headers[0].dest},
		{"", headers[2].head, headers[2].client, headers[2].dest},
		{"", headers[4].head, "", front.Addr().String()},
	} {
		peer := dial(t, front, tc.from, tc.say)
		client := next[tcpio.Opened](t, near).Conn
		up, err := front.Dial(context.Background(), "tcp", back.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		next[tcpio.Opened](t, near)
		if err := Send(up, client, Checksum(), TLV{Type: pp.PP2_TYPE_UNIQUE_ID, Value: []byte("id")}); err != nil {
			t.Fatal(err)
		}
		if _, err := up.TryWrite([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		c := next[tcpio.Opened](t, far).Conn
		want := tc.client
		if want == "" {
			want = peer.LocalAddr().String()
		}
		h := HeaderOf(c)
		if c.RemoteAddr().String() != want || h.DestinationAddr.String() != tc.dest {
			t.Errorf("RemoteAddr %v, destination %v, want %v and %v", c.RemoteAddr(), h.DestinationAddr, want, tc.dest)
		}
		if tlvs, err := h.TLVs(); err != nil || len(tlvs) != 2 || string(tlvs[1].Value) != "id" {
			t.Errorf("TLVs %v, %v", tlvs, err)
		}
		if got := input(t, far, 5); got != "hello" {
			t.Errorf("read %q", got)
		}
		for _, c := range []*tcpio.Conn{c, client, up} {
			c.Abort()
		}
		next[tcpio.Closed](t, far)
		next[tcpio.Closed](t, near)
		next[tcpio.Closed](t, near)
		if err := Send(up, client); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Send on a closed connection: %v", err)
		}
	}
}

// HAProxy sends both versions, with TLVs and a checksum, and checks health.
func TestHAProxySends(t *testing.T) {
	program, err := exec.LookPath("haproxy")
	if err != nil {
		program = "/usr/sbin/haproxy"
		if _, err := os.Stat(program); err != nil {
			t.Skip("haproxy is not installed")
		}
	}
	for _, send := range []string{"send-proxy", "send-proxy-v2 proxy-v2-options crc32c,unique-id", "send-proxy-v2 check check-send-proxy inter 50ms"} {
		t.Run(send, func(t *testing.T) {
			l, events := serve(t, tcpio.ListenerOptions{Proxies: localhost}, Options{})
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			f, err := ln.(*net.TCPListener).File()
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			config := filepath.Join(t.TempDir(), "haproxy.cfg")
			text := fmt.Sprintf(`defaults
	mode tcp
	timeout connect 5s
	timeout client 20s
	timeout server 20s
	timeout check 5s
frontend in
	bind fd@3
	unique-id-format id-%%ci
	default_backend out
backend out
	server s1 %s %s
`, l.Addr(), send)
			if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(program, "-db", "-f", config)
			cmd.ExtraFiles = []*os.File{f}
			out := new(strings.Builder)
			cmd.Stdout, cmd.Stderr = out, out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
				if t.Failed() {
					t.Log(out)
				}
			}()
			client, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			_ = client.SetDeadline(time.Now().Add(limit))
			_, _ = io.WriteString(client, "hello")
			health := 0
			var served *tcpio.Conn
			for served == nil || strings.Contains(send, "check") && health < 3 {
				switch ev := next[tcpio.Event](t, events).(type) {
				case tcpio.Opened:
					if HeaderOf(ev.Conn).Command.IsLocal() {
						health++
						continue
					}
					served = ev.Conn
					if got := ev.Conn.RemoteAddr().String(); got != client.LocalAddr().String() {
						t.Errorf("RemoteAddr is %v, want %v", got, client.LocalAddr())
					}
					if got := HeaderOf(ev.Conn).DestinationAddr.String(); got != ln.Addr().String() {
						t.Errorf("the destination is %v, want %v", got, ln.Addr())
					}
					if tlvs, err := HeaderOf(ev.Conn).TLVs(); strings.Contains(send, "unique-id") && (err != nil || len(tlvs) != 2) {
						t.Errorf("TLVs %v, %v", tlvs, err)
					}
				case tcpio.Readable:
					buf := make([]byte, 10)
					n, err := ev.Conn.TryRead(buf)
					if ev.Conn != served {
						ev.Conn.Close() // a check has ended
					} else if string(buf[:n]) != "hello" && err != tcpio.ErrWouldBlock {
						t.Errorf("read %q, %v", buf[:n], err)
					}
				case tcpio.Failed:
					t.Errorf("Failed: %v", ev.Err)
				}
			}
		})
	}
}

// Behind the header another Preface may look at what the client sends.
func TestAnotherPrefaceMayFollow(t *testing.T) {
	accept := Accept(Options{})
	o := tcpio.ListenerOptions{Addr: "127.0.0.1:0", Proxies: localhost, Preface: func(c *tcpio.Conn, head []byte) (int, error) {
		n, err := accept(c, head)
		if err != nil {
			return 0, err
		}
		hello, err := tcpio.ParseClientHello(head[n:])
		if err == nil {
			c.SetData(hello.ServerName)
		}
		return n, err
	}}
	l, err := tcpio.Listen(&o)
	if err != nil {
		t.Fatal(err)
	}
	events := l.Events()
	served := make(chan error, 1)
	go func() { served <- l.Serve(context.Background()) }()
	var hello strings.Builder
	_ = tls.Client(writeOnly{Writer: &hello}, &tls.Config{ServerName: "example.org"}).Handshake()
	var bytes []string
	for _, b := range []byte(headers[0].head + hello.String()) {
		bytes = append(bytes, string([]byte{b}))
	}
	dial(t, l, "", bytes...)
	c := next[tcpio.Opened](t, events).Conn
	if got := input(t, events, hello.Len()); got != hello.String() || c.Data() != "example.org" || c.RemoteAddr().String() != headers[0].client {
		t.Errorf("%d bytes, %v, %v", len(got), c.Data(), c.RemoteAddr())
	}
	go l.Close()
	for range events {
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// writeOnly is a peer that says nothing.
type writeOnly struct {
	net.Conn
	io.Writer
}

func (w writeOnly) Write(p []byte) (int, error)    { return w.Writer.Write(p) }
func (writeOnly) Read([]byte) (int, error)         { return 0, io.EOF }
func (writeOnly) Close() error                     { return nil }
func (writeOnly) SetDeadline(time.Time) error      { return nil }
func (writeOnly) SetWriteDeadline(time.Time) error { return nil }
