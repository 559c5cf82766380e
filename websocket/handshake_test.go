//go:build linux

package websocket

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
)

func TestHandshakes(t *testing.T) {
	s := start(t, tcpio.ListenerOptions{Logger: slog.New(slog.DiscardHandler)}, Options{
		NewActor:         echoActor,
		Origins:          []string{"*.example.org", "https://app.example.net", "OTHER.example.com:8080"},
		Subprotocols:     []string{"chat.v2", "chat.v1"},
		HandshakeTimeout: testLimit,
		Check: func(r *http.Request) int {
			switch r.URL.Path {
			case "/private":
				return http.StatusUnauthorized
			case "/odd":
				return 1
			case "/panic":
				panic("Check")
			}
			return 0
		},
	}, nil)
	edit := func(old, new string) string { return strings.Replace(handshakeOf, old, new, 1) }
	add := func(line string) string { return handshakeOf + line + "\r\n" }
	for _, c := range []struct {
		name, request string
		status        int
		header        string // one that the answer has
	}{
		{"plain", handshakeOf, 101, "Upgrade: websocket"},
		{"other case", edit("Upgrade: websocket\r\nConnection: Upgrade", "upgrade: WebSocket\r\nconnection: keep-alive, upgrade"), 101, ""},
		{"POST", edit("GET", "POST"), 405, "Allow: GET"},
		{"HTTP/1.0", edit("HTTP/1.1", "HTTP/1.0"), 505, ""},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n", 505, ""},
		{"no host", edit("Host: example.com\r\n", ""), 400, ""},
		{"no upgrade", edit("Upgrade: websocket\r\n", ""), 400, ""},
		{"no connection", edit("Connection: Upgrade\r\n", ""), 400, ""},
		{"no key", edit("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""), 400, ""},
		{"short key", edit("dGhlIHNhbXBsZSBub25jZQ==", "dGhl"), 400, ""},
		{"a key that is no base64", edit("dGhlIHNhbXBsZSBub25jZQ==", strings.Repeat("!", 24)), 400, ""},
		{"a key of 18 bytes", edit("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQAA"), 400, ""},
		{"two keys", add("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), 400, ""},
		{"two hosts", add("Host: example.com"), 400, ""},
		{"bad host", edit("example.com", "example.com/x"), 400, ""},
		{"space behind a name", add("X : y"), 400, ""},
		{"HTTP/2.0", edit("HTTP/1.1", "HTTP/2.0"), 505, ""},
		{"lists", edit("Upgrade: websocket\r\nConnection: Upgrade", "Upgrade: h2c, websocket\r\nConnection: keep-alive\r\nConnection: Upgrade"), 101, ""},
		{"no version", edit("Sec-WebSocket-Version: 13\r\n", ""), 400, ""},
		{"version 8", edit("Version: 13", "Version: 8"), 426, "Sec-WebSocket-Version: 13"},
		{"body", add("Content-Length: 3"), 400, ""},
		{"chunked body", add("Transfer-Encoding: chunked"), 400, ""},
		{"no HTTP", "SSH-2.0-OpenSSH_9.0\r\n\r\n", 400, ""},
		{"bad header", add("bad header"), 400, ""},
		{"head too long", add("X: " + strings.Repeat("x", maxHead)), 431, ""},
		{"same origin", add("Origin: http://example.com"), 101, ""},
		{"same origin, other case", add("Origin: https://EXAMPLE.com"), 101, ""},
		{"other origin", add("Origin: http://evil.com"), 403, ""},
		{"two origins", add("Origin: http://example.com\r\nOrigin: http://evil.com"), 403, ""},
		{"other port", add("Origin: http://example.com:81"), 403, ""},
		{"origin null", add("Origin: null"), 403, ""},
		{"origin nonsense", add("Origin: ://"), 403, ""},
		{"origin in a pattern", add("Origin: http://a.example.org"), 101, ""},
		{"origin not quite in it", add("Origin: http://a.example.org.evil.com"), 403, ""},
		{"origin with scheme", add("Origin: https://app.example.net"), 101, ""},
		{"origin with another scheme", add("Origin: http://app.example.net"), 403, ""},
		{"origin with port", add("Origin: http://other.example.com:8080"), 101, ""},
		{"subprotocol", add("Sec-WebSocket-Protocol: chat.v1, chat.v2"), 101, "Sec-WebSocket-Protocol: chat.v2"},
		{"subprotocols in lines", add("Sec-WebSocket-Protocol: x\r\nSec-WebSocket-Protocol: chat.v1"), 101, "Sec-WebSocket-Protocol: chat.v1"},
		{"no such subprotocol", add("Sec-WebSocket-Protocol: x, y"), 101, "Sec-WebSocket-Protocol: "},
		{"checked", edit("/x", "/private"), 401, ""},
		{"checked oddly", edit("/x", "/odd"), 403, ""},
		{"check panics", edit("/x", "/panic"), 500, ""},
		{"compression not on", add("Sec-WebSocket-Extensions: permessage-deflate"), 101, "Sec-WebSocket-Extensions: "},
	} {
		for _, inBytes := range []bool{false, true} {
			t.Run(fmt.Sprint(c.name, inBytes), func(t *testing.T) {
				p := dialRaw(t, s.Listener().Addr())
				whole := []byte(c.request + "\r\n")
				if !inBytes || len(whole) > 1000 {
					p.send(whole)
				} else {
					for i := range whole {
						if _, err := p.Write(whole[i : i+1]); err != nil {
							break
						}
					}
				}
				resp := p.response()
				if resp.StatusCode != c.status {
					t.Fatalf("%s, want %d", resp.Status, c.status)
				}
				if name, value, ok := strings.Cut(c.header, ": "); ok && resp.Header.Get(name) != value {
					t.Errorf("%s: %q, want %q", name, resp.Header.Get(name), value)
				}
				if c.status == 101 {
					p.send(fr(opText, "x"))
					p.expect("text x")
				} else {
					body, err := io.ReadAll(resp.Body)
					if want := http.StatusText(c.status); err != nil || !strings.HasPrefix(string(body), want) {
						t.Errorf("body %q, %v", body, err)
					}
					for line := ""; line != "eof"; line = p.next() {
					}
				}
			})
		}
	}
}

// Frames behind the request, before the answer, are not lost.
func TestFramesBehindRequest(t *testing.T) {
	for route, s := range routes(t, Options{}) {
		p := dialRaw(t, s.Listener().Addr())
		p.send(join([]byte(handshakeOf+"\r\n"), fr(opText, "early"), fr(opText, "cut")[:4]))
		p.response()
		p.expect("text early")
		p.send(fr(opText, "cut")[4:])
		if got := p.next(); got != "text cut" {
			t.Error(route, got)
		}
	}
}

func TestAddrBehindProxies(t *testing.T) {
	s, err := New(&Options{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8")}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		remote string
		hops   []string
		want   string
	}{
		{"192.0.2.1:5", nil, "192.0.2.1"},
		{"192.0.2.1:5", []string{"1.2.3.4"}, "192.0.2.1"},
		{"127.0.0.1:5", nil, "127.0.0.1"},
		{"127.0.0.1:5", []string{"1.2.3.4"}, "1.2.3.4"},
		{"127.0.0.1:5", []string{"6.6.6.6, 1.2.3.4, 10.0.0.7"}, "1.2.3.4"},
		{"127.0.0.1:5", []string{"6.6.6.6", "1.2.3.4", "10.0.0.7"}, "1.2.3.4"},
		{"127.0.0.1:5", []string{"1.2.3.4, nonsense, 10.0.0.7"}, "10.0.0.7"},
		{"[::ffff:127.0.0.1]:5", []string{"2001:db8::1"}, "2001:db8::1"},
	} {
		r := &http.Request{RemoteAddr: c.remote, Header: http.Header{"X-Forwarded-For": c.hops}}
		if got := s.peerOf(r); got.String() != c.want {
			t.Errorf("%s %q: %v, want %s", c.remote, c.hops, got, c.want)
		}
	}
}

// A client that sends its request byte by byte has HandshakeTimeout for all of it, and does not
// keep others out.
func TestSlowHandshakes(t *testing.T) {
	const patience = 10 * time.Second // it tells who waits for the slow ones; bench/websocket has times
	slow := slowHandshakes
	if raceEnabled {
		slow = min(slow, 1000)
	}
	s := start(t, tcpio.ListenerOptions{}, Options{NewActor: echoActor, HandshakeTimeout: time.Second + time.Duration(slow)*time.Millisecond/2}, nil)
	all := make([]*peer, slow)
	before := heapInUse()
	for i := range all {
		all[i] = dialRaw(t, s.Listener().Addr())
		all[i].send([]byte(handshakeOf[:50]))
	}
	if grown := heapInUse() - before; grown > slow*8<<10 && !raceEnabled { // the test's own ends have 4 KiB each
		t.Errorf("%d bytes for each", grown/slow)
	}
	for i := range 20 { // honest ones, while the slow ones go on
		for _, p := range all {
			_, _ = p.Write([]byte(handshakeOf[50+i : 51+i]))
		}
		begin := time.Now()
		p := dialPeer(t, s, "")
		p.send(fr(opText, "x"))
		p.expect("text x")
		if took := time.Since(begin); took > patience {
			t.Errorf("an honest client waited for %v", took)
		}
	}
	for _, p := range all {
		_ = p.SetDeadline(time.Now().Add(testLimit))
		if resp := p.response(); resp.StatusCode != http.StatusRequestTimeout {
			t.Fatal(resp.Status)
		}
		p.Close()
	}
}

func TestBadOptions(t *testing.T) {
	for field, o := range map[string]*Options{
		"MaxMessage": {MaxMessage: -1}, "MaxFrame": {MaxFrame: 1<<30 + 1}, "PieceSize": {PieceSize: 1, Compress: true},
		"CloseTimeout": {CloseTimeout: -1}, "Origins": {Origins: []string{"["}}, "Subprotocols": {Subprotocols: []string{"a b"}},
		"MaxRate": {MaxRate: -5}, "CompressMin": {CompressMin: -5}, "PingInterval": {PingInterval: -5},
	} {
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), "Options."+field+":") {
			t.Errorf("%s: %v", field, err)
		}
	}
	if _, err := Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0", DeferAccept: true}, nil); err == nil {
		t.Error("DeferAccept is taken")
	}
	if _, err := Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0", Loops: -1}, nil); err == nil {
		t.Error("a bad option of tcpio's is taken")
	}
	if _, err := Listen(nil, nil); err == nil {
		t.Error("nil options are taken")
	}
	s, err := New(nil)
	if err != nil {
		t.Fatal(err)
	}
	if s.Serve(t.Context()) == nil {
		t.Error("Serve works without a listener")
	}
}

func TestNames(t *testing.T) {
	c := &Conn{tc: new(tcpio.Conn)}
	var lines []string
	for _, ev := range []fmt.Stringer{Opened{Conn: c}, Text{c, []byte("secret")}, Binary{c, []byte("x")}, Piece{Conn: c}, Writable{Conn: c},
		Message{Conn: c, Value: 7}, Draining{c}, Closed{c, 4000, "secret", Peer}, Failed{net.ErrClosed}, Normal, Code(4000), Local, Neither, Side(9)} {
		lines = append(lines, ev.String())
		if ev, ok := ev.(Event); ok {
			if _, none := ev.(Failed); (ConnOf(ev) == nil) != none {
				t.Errorf("ConnOf(%T): %v", ev, ConnOf(ev))
			}
		}
	}
	all := strings.Join(lines, "\n")
	if strings.Contains(all, "secret") || !strings.Contains(all, "6 bytes") || !strings.Contains(all, "1000 normal") {
		t.Error(all)
	}
	if ConnOf(nil) != nil {
		t.Error("nothing has a connection")
	}
	if (*Conn)(nil).String() != "no conn" {
		t.Error("a nil Conn")
	}
	if got := cut(strings.Repeat("é", 70)); len(got) != 122 {
		t.Error(len(got))
	}
	if got := slices.Collect(strings.SplitSeq(cut("\xff"), "")); len(got) != 1 {
		t.Error(got)
	}
}
