//go:build linux

package websocket

import (
	"bytes"
	"compress/flate"
	"fmt"
	"strings"
	"testing"

	"github.com/gobwas/ws/wsflate"

	"github.com/rabbit-backend/tcpio"
)

const offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"

// pack compresses a message as a client does.
func pack(s string) string {
	b, err := wsflate.DefaultHelper.Compress([]byte(s))
	if err != nil {
		panic(err)
	}
	return string(b)
}

// unpack shows a frame that next has not decompressed.
func (p *peer) packed() string {
	h, b, err := readFrame(p.br)
	if err != nil {
		return "eof"
	}
	if !h.Rsv1() {
		return "not compressed: " + string(b)
	}
	plain, err := wsflate.DefaultHelper.Decompress(b)
	if err != nil {
		return err.Error()
	}
	return string(plain)
}

func TestDeflateOffers(t *testing.T) {
	s := start(t, tcpio.ListenerOptions{}, Options{NewActor: echoActor, Compress: true, CompressMin: 1}, nil)
	const yes = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
	for _, c := range []struct{ offer, answer string }{
		{"permessage-deflate", yes},
		{"permessage-deflate; client_max_window_bits", yes},
		{"permessage-deflate; client_max_window_bits=10", yes},
		{"permessage-deflate; server_no_context_takeover; client_no_context_takeover", yes},
		{"permessage-deflate; server_max_window_bits=9", ""},
		{"permessage-deflate; server_max_window_bits=9, permessage-deflate", yes},
		{"permessage-deflate; server_max_window_bits", ""},
		{"permessage-deflate; client_max_window_bits=99", ""},
		{"permessage-deflate; unknown=1", ""},
		{"permessage-deflate; server_no_context_takeover; server_no_context_takeover", ""},
		{"x-webkit-deflate-frame, permessage-deflate", yes},
		{"x-webkit-deflate-frame", ""},
		{"permessage-deflate, permessage-deflate", yes},
	} {
		p := dialRaw(t, s.Listener().Addr())
		p.send([]byte(handshakeOf + "Sec-WebSocket-Extensions: " + c.offer + "\r\n\r\n"))
		resp := p.response()
		if got := strings.ReplaceAll(resp.Header.Get("Sec-WebSocket-Extensions"), ";", "; "); strings.ReplaceAll(got, "  ", " ") != c.answer || resp.StatusCode != 101 {
			t.Errorf("%s: %s %q", c.offer, resp.Status, got)
			continue
		}
		if c.answer != "" {
			p.send(fr(opText, pack("hello"), "1"))
			if got := p.packed(); got != "hello" {
				t.Errorf("%s: %s", c.offer, got)
			}
		}
		p.Close()
	}
}

func TestDeflate(t *testing.T) {
	text := strings.Repeat("Hello, world. ", 20)
	for route, s := range routes(t, Options{Compress: true, CompressMin: 100, MaxMessage: 1 << 20}) {
		t.Run(route, func(t *testing.T) {
			p := dialPeer(t, s, offer)
			p.send(join(fr(opText, pack(text), "1"), fr(opText, pack("short"), "1"), fr(opText, text)))
			if got := p.packed(); got != text {
				t.Error(got)
			}
			p.expect("text short")
			if got := p.packed(); got != text {
				t.Error(got)
			}
			// in fragments of a byte, with a ping in between; and the message empty
			z := pack(text)
			p.send(fr(opText, z[:1], "-", "1"))
			for i := 1; i < len(z); i++ {
				p.send(fr(opMore, z[i:i+1], "-"))
			}
			p.send(join(fr(opPing, "p"), fr(opMore, ""), fr(opText, pack(""), "1"), fr(opText, "", "1")))
			p.expect("pong p")
			if got := p.packed(); got != text {
				t.Error(got)
			}
			p.expect("text", "text")
			// a final block ends the stream too (RFC 7692, 7.2.3.4)
			var b bytes.Buffer
			w, _ := flate.NewWriter(&b, 9)
			w.Write([]byte("final"))
			w.Close()
			p.send(fr(opText, b.String()+"\x00", "1"))
			p.expect("text final")
			p.send(bye)
			p.expect("close 1000", "eof")
		})
	}
}

// What TestConformance sends is as valid, or not, for a peer that has negotiated compression, but
// for the first reserved bit of a message.
func TestConformanceDeflate(t *testing.T) {
	s := start(t, tcpio.ListenerOptions{}, Options{NewActor: echoActor, Compress: true, CompressMin: 1 << 30}, nil)
	for _, c := range conformanceCases() {
		if c.name == "reserved bit 1, opcode 1" || c.name == "reserved bit 1, opcode 2" {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			p := dialPeer(t, s, offer)
			p.send(join(c.send, bye))
			want := c.want
			if !strings.HasPrefix(want[len(want)-1], "close") {
				want = append(append([]string(nil), want...), "close 1000")
			}
			p.expect(append(want[:len(want):len(want)], "eof")...)
		})
	}
}

func TestDeflateBad(t *testing.T) {
	bomb := pack(strings.Repeat("\x00", 16<<20))
	for _, c := range []struct {
		name string
		send []byte
		want string
	}{
		{"bomb", fr(opBinary, bomb, "1"), "close 1009 message over 1048576 bytes"},
		{"corrupt", fr(opBinary, "\xff\xff\xff\xff", "1"), "close 1007"},
		{"not UTF-8", fr(opText, pack("\xff"), "1"), "close 1007"},
		{"bit on a continuation", join(fr(opText, "x", "-"), fr(opMore, "y", "1")), "close 1002"},
		{"bit on a ping", fr(opPing, "x", "1"), "close 1002"},
		{"second bit", fr(opText, pack("x"), "1", "2"), "close 1002"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t, tcpio.ListenerOptions{}, Options{NewActor: echoActor, Compress: true}, nil)
			p := dialPeer(t, s, offer)
			p.send(c.send)
			p.expect(c.want, "eof")
		})
	}
}

// The largest message is the same compressed or not, and what does not compress may be sent too.
func TestDeflateLimit(t *testing.T) {
	const most = 100000
	s := start(t, tcpio.ListenerOptions{}, Options{NewActor: echoActor, Compress: true, MaxMessage: most, CompressMin: 1 << 30}, nil)
	noise := make([]byte, most)
	for i, x := 0, uint64(88172645463325252); i < most; i++ {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		noise[i] = byte(x)
	}
	p := dialPeer(t, s, offer)
	p.send(fr(opBinary, pack(string(noise)), "1"))
	p.expect(fmt.Sprintf("binary (%d bytes)", most))
	p.send(fr(opBinary, pack(strings.Repeat("x", most)), "1"))
	p.expect(fmt.Sprintf("binary (%d bytes)", most))
	p.send(fr(opBinary, pack(strings.Repeat("x", most+1)), "1"))
	p.expect(fmt.Sprintf("close 1009 message over %d bytes", most), "eof")
}
