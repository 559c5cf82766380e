//go:build linux

package websocket

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// testLimit is how long a test waits for something that must happen.
const testLimit = 20 * time.Second

func TestMain(m *testing.M) { testnet.MainOfProgram(m) }

// start serves until the end of the test. With handle the events of the stream go there.
func start(t testing.TB, tcp tcpio.ListenerOptions, opts Options, handle func(Event)) *Server {
	t.Helper()
	if tcp.Addr == "" && tcp.Network == "" {
		tcp.Addr = "127.0.0.1:0"
	}
	s, err := Listen(&tcp, &opts)
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	if handle != nil {
		events := s.Events()
		running.Go(func() {
			for ev := range events {
				handle(ev)
			}
		})
	}
	running.Go(func() {
		if err := s.Serve(context.Background()); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(func() {
		s.Listener().Close()
		running.Wait()
	})
	return s
}

// echo is an actor that sends messages back.
func echo(ev Event) error {
	switch ev := ev.(type) {
	case Text:
		return quiet(ev.Conn.WriteText(ev.Data))
	case Binary:
		return quiet(ev.Conn.WriteBinary(ev.Data))
	}
	return nil
}

// quiet is err unless that only says that the connection has ended.
func quiet(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func echoActor(*Conn) Actor { return ActorFunc(echo) }

// A peer is the client's end of a connection, byte by byte.
type peer struct {
	net.Conn
	t     testing.TB
	br    *bufio.Reader
	parts bool     // next shows each fragment
	later []string // pongs that came between two fragments
}

const handshakeOf = "GET /x?y=z HTTP/1.1\r\nHost: example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
	"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"

// dialRaw connects without a handshake.
func dialRaw(t testing.TB, addr net.Addr) *peer {
	t.Helper()
	nc, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	nc.SetDeadline(time.Now().Add(testLimit))
	t.Cleanup(func() { nc.Close() })
	return &peer{Conn: nc, t: t, br: bufio.NewReader(nc)}
}

// dialPeer connects and shakes hands; header is more lines of the request.
func dialPeer(t testing.TB, s *Server, header string) *peer {
	t.Helper()
	p := dialRaw(t, s.Listener().Addr())
	p.send([]byte(handshakeOf + header + "\r\n"))
	if resp := p.response(); resp.StatusCode != 101 || resp.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Fatalf("handshake: %v %v", resp.Status, resp.Header)
	}
	return p
}

func (p *peer) send(b []byte) {
	p.t.Helper()
	if _, err := p.Write(b); err != nil {
		p.t.Fatalf("the peer sends: %v", err)
	}
}

func (p *peer) response() *http.Response {
	p.t.Helper()
	resp, err := http.ReadResponse(p.br, nil)
	if err != nil {
		p.t.Fatalf("the peer reads the answer: %v", err)
	}
	return resp
}

// next reads a frame as a line: "text hello", "close 1000 bye", "eof".
func (p *peer) next() string {
	if len(p.later) > 0 {
		line := p.later[0]
		p.later = p.later[1:]
		return line
	}
	h, err := ws.ReadHeader(p.br)
	if err != nil {
		p.Close() // which the server waits for
		return "eof"
	}
	b := make([]byte, h.Length)
	if _, err := io.ReadFull(p.br, b); err != nil {
		return "cut"
	}
	for !h.Fin && !p.parts {
		more, err := ws.ReadHeader(p.br)
		if err != nil {
			return "cut"
		}
		part := make([]byte, more.Length)
		if _, err := io.ReadFull(p.br, part); err != nil {
			return "cut"
		}
		if more.OpCode == ws.OpPong {
			p.later = append(p.later, "pong "+string(part))
			continue
		}
		h.Fin, b = more.Fin, append(b, part...)
	}
	name := map[ws.OpCode]string{0: "more", 1: "text", 2: "binary", 8: "close", 9: "ping", 10: "pong"}[h.OpCode]
	if h.Masked {
		name = "masked " + name
	}
	if h.Rsv != 0 {
		name += fmt.Sprintf(" rsv%d", h.Rsv)
	}
	if !h.Fin {
		name += "-"
	}
	switch {
	case h.OpCode == ws.OpClose && len(b) >= 2:
		return strings.TrimRight(fmt.Sprintf("%s %d %s", name, binary.BigEndian.Uint16(b), b[2:]), " ")
	case len(b) > 100:
		return fmt.Sprintf("%s (%d bytes)", name, len(b))
	}
	return strings.TrimRight(fmt.Sprintf("%s %s", name, b), " ")
}

// readFrame reads a frame.
func readFrame(r io.Reader) (h ws.Header, b []byte, err error) {
	if h, err = ws.ReadHeader(r); err != nil {
		return h, nil, err
	}
	b = make([]byte, h.Length)
	_, err = io.ReadFull(r, b)
	return h, b, err
}

// expect reads frames.
func (p *peer) expect(lines ...string) {
	p.t.Helper()
	for i, want := range lines {
		if got := p.next(); got != want {
			p.t.Fatalf("frame %d: %q, want %q", i, got, want)
		}
	}
}

// mask is what the peer masks with.
var mask = [4]byte{0x37, 0xfa, 0x21, 0x3d}

// fr is a masked frame. flags: "" is a whole message; "-" more follows; "1", "2", "3" set reserved
// bits.
func fr(op ws.OpCode, payload string, flags ...string) []byte {
	h := ws.Header{Fin: true, OpCode: op, Masked: true, Mask: mask, Length: int64(len(payload))}
	for _, f := range flags {
		switch f {
		case "-":
			h.Fin = false
		case "1", "2", "3":
			h.Rsv |= 8 >> (f[0] - '0')
		case "u":
			h.Masked = false
		}
	}
	var b bytes.Buffer
	_ = ws.WriteHeader(&b, h)
	p := []byte(payload)
	if h.Masked {
		ws.Cipher(p, mask, 0)
	}
	b.Write(p)
	return b.Bytes()
}

const (
	opMore   = ws.OpContinuation
	opText   = ws.OpText
	opBinary = ws.OpBinary
)

// closeOf is the payload of a Close frame.
func closeOf(code uint16, reason string) string {
	return string(binary.BigEndian.AppendUint16(nil, code)) + reason
}

var bye = fr(opClose, closeOf(1000, ""))

func join(frames ...[]byte) []byte { return bytes.Join(frames, nil) }

// A record keeps events as lines.
type record struct {
	mu    sync.Mutex
	lines []string
	more  chan struct{}
}

func newRecord() *record { return &record{more: make(chan struct{}, 1)} }

func (r *record) add(ev Event) {
	line := ""
	switch ev := ev.(type) {
	case Opened:
		line = "opened"
		if ev.Request != nil {
			line += " " + ev.Request.URL.String()
		}
	case Text:
		line = fmt.Sprintf("text %.50s", ev.Data)
	case Binary:
		line = fmt.Sprintf("binary %.50s", ev.Data)
	case Piece:
		line = fmt.Sprintf("piece %.50s %v", ev.Data, ev.Last)
	case Message:
		line = fmt.Sprint("message ", ev.Value)
	case Writable:
		line = fmt.Sprint("writable ", ev.Skipped > 0)
	case Draining:
		line = "draining"
	case Closed:
		line = fmt.Sprintf("closed %v %v %v", uint16(ev.Code), ev.Reason, ev.By)
		if err := ev.Conn.Err(); err != nil {
			line += ": " + err.Error()
		}
	case Failed:
		line = ev.String()
	}
	r.mu.Lock()
	r.lines = append(r.lines, line)
	r.mu.Unlock()
	select {
	case r.more <- struct{}{}:
	default:
	}
}

// wait returns the lines once one has prefix.
func (r *record) wait(t testing.TB, prefix string) []string {
	t.Helper()
	late := time.After(testLimit)
	for {
		r.mu.Lock()
		lines := append([]string(nil), r.lines...)
		r.mu.Unlock()
		for _, l := range lines {
			if strings.HasPrefix(l, prefix) {
				return lines
			}
		}
		select {
		case <-r.more:
		case <-late:
			t.Fatalf("no event %q in %q", prefix, lines)
		}
	}
}
