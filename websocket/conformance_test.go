//go:build linux

package websocket

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/gobwas/ws"

	"github.com/rabbit-backend/tcpio"
)

// A conformance case is what a peer sends and what it gets from an echo server, up to the end.
type conformance struct {
	name string
	send []byte
	want []string
}

var long = strings.Repeat("*", 70000)

// big is how peer.next shows a message of n bytes.
func big(name string, n int) string { return fmt.Sprintf("%s (%d bytes)", name, n) }

// framing, pings, reserved bits, opcodes, fragmentation and closing: RFC 6455, 5, 7.
func conformanceCases() []conformance {
	cases := []conformance{
		{"text empty", fr(opText, ""), []string{"text"}},
		{"binary empty", fr(opBinary, ""), []string{"binary"}},
		{"ping empty", fr(opPing, ""), []string{"pong"}},
		{"ping payload", fr(opPing, "Hello, world!"), []string{"pong Hello, world!"}},
		{"ping binary", fr(opPing, "\x00\xff\xfe\xfd"), []string{"pong \x00\xff\xfe\xfd"}},
		{"ping 125", fr(opPing, long[:125]), []string{big("pong", 125)}},
		{"ping 126", fr(opPing, long[:126]), []string{"close 1002"}},
		{"pong unsolicited", join(fr(opPong, ""), fr(opPong, "x"), fr(opPing, "y")), []string{"pong y"}},
		{"ten pings", slices.Repeat(fr(opPing, "p"), 10), slices.Repeat([]string{"pong p"}, 10)},
		{"pong 126", fr(opPong, long[:126]), []string{"close 1002"}},
		{"unmasked", fr(opText, "x", "u"), []string{"close 1002"}},
		{"text then bad", join(fr(opText, "first"), fr(opText, "x", "2")), []string{"text first", "close 1002"}},
		{"ping fragmented", fr(opPing, "x", "-"), []string{"close 1002"}},
		{"close fragmented", fr(opClose, closeOf(1000, ""), "-"), []string{"close 1002"}},
		{"two fragments", join(fr(opText, "frag1", "-"), fr(opMore, "frag2")), []string{"text frag1frag2"}},
		{"empty fragments", join(fr(opText, "", "-"), fr(opMore, "", "-"), fr(opMore, "")), []string{"text"}},
		{"empty around", join(fr(opText, "", "-"), fr(opMore, "middle", "-"), fr(opMore, "")), []string{"text middle"}},
		{"control between", join(fr(opText, "1", "-"), fr(opPing, "p1"), fr(opMore, "2", "-"), fr(opPong, ""),
			fr(opPing, "p2"), fr(opMore, "3"), fr(opBinary, "b")), []string{"pong p1", "pong p2", "text 123", "binary b"}},
		{"continuation first", fr(opMore, "x"), []string{"close 1002"}},
		{"continuation first, more", fr(opMore, "x", "-"), []string{"close 1002"}},
		{"continuation behind message", join(fr(opText, "a", "-"), fr(opMore, "b"), fr(opMore, "c")), []string{"text ab", "close 1002"}},
		{"text inside text", join(fr(opText, "a", "-"), fr(opText, "b")), []string{"close 1002"}},
		{"binary inside text", join(fr(opText, "a", "-"), fr(opBinary, "b")), []string{"close 1002"}},
		{"close inside text", join(fr(opText, "a", "-"), bye), []string{"close 1000"}},
		{"text behind close", join(bye, fr(opText, "late"), fr(opPing, "late")), []string{"close 1000"}},
		{"length in 64 bits", append([]byte{0x81, 0xff, 0, 0, 0, 0, 0, 0, 0, 1}, 0, 0, 0, 0, 'x'), []string{"text x"}},
		{"length over 63 bits", append([]byte{0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 1}, 0, 0, 0, 0, 'x'), []string{"close 1002"}},
		{"length a terabyte", append([]byte{0x82, 0xff, 0, 0, 1, 0, 0, 0, 0, 0}, 0, 0, 0, 0, 'x'), []string{"close 1009 message over 1048576 bytes"}},
		{"close empty", fr(opClose, ""), []string{"close"}},
		{"close one byte", fr(opClose, "a"), []string{"close 1002"}},
		{"close reason", fr(opClose, closeOf(1000, "Hello")), []string{"close 1000"}},
		{"close reason 123", fr(opClose, closeOf(1000, long[:123])), []string{"close 1000"}},
		{"close reason 124", fr(opClose, closeOf(1000, long[:124])), []string{"close 1002"}},
		{"close reason no UTF-8", fr(opClose, closeOf(1000, "\xce\xba\xed\xa0\x80")), []string{"close 1007"}},
	}
	for n, ops := 0, []ws.OpCode{3, 4, 5, 6, 7, 11, 12, 13, 14, 15}; n < len(ops); n++ {
		cases = append(cases, conformance{fmt.Sprintf("opcode %d", ops[n]),
			join(fr(opText, "a"), fr(ops[n], "x")), []string{"text a", "close 1002"}})
	}
	for _, bit := range []string{"1", "2", "3"} {
		for _, op := range []ws.OpCode{opText, opBinary, opPing, opPong, opClose} {
			cases = append(cases, conformance{fmt.Sprintf("reserved bit %s, opcode %d", bit, op), fr(op, "", bit), []string{"close 1002"}})
		}
	}
	for _, n := range []int{1, 125, 126, 127, 128, 65535, 65536, 65537} {
		for op, name := range map[ws.OpCode]string{opText: "text", opBinary: "binary"} {
			want := big(name, n)
			if n <= 100 {
				want = name + " " + long[:n]
			}
			cases = append(cases, conformance{fmt.Sprint(name, " of ", n), fr(op, long[:n]), []string{want}})
		}
	}
	for _, code := range []uint16{1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999} {
		cases = append(cases, conformance{fmt.Sprint("code ", code), fr(opClose, closeOf(code, "")), []string{fmt.Sprint("close ", code)}})
	}
	for _, code := range []uint16{0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535} {
		cases = append(cases, conformance{fmt.Sprint("bad code ", code), fr(opClose, closeOf(code, "")), []string{"close 1002"}})
	}
	return append(cases, textCases()...)
}

// textCases are what is UTF-8 and what is not, in one frame and in frames of a byte each.
func textCases() []conformance {
	valid := []string{
		"Hello-µ@ßöäüàá-UTF-8!!", "κόσμε", "\x00", "\u0080", "\u0800", "\U00010000", "\x7f", "\u07ff", "\uffff",
		"\ud7ff", "\ue000", "\ufffd", "\U0010ffff", "\ufffe", "\U0001fffe", "\U0001ffff", "\U0002fffe", "\U000ffffe",
		"\U000fffff", "\U0010fffe", "\ufdd0", "\ufeff", "a\u0300", "\U0001f600\U0001f468\u200d\U0001f469",
	}
	invalid := []string{
		"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited", "\xce\xba\xe1", "\xf8\x88\x80\x80\x80",
		"\xfc\x84\x80\x80\x80\x80", "\xf7\xbf\xbf\xbf", "\xfb\xbf\xbf\xbf\xbf", "\xfd\xbf\xbf\xbf\xbf\xbf", "\xf4\x90\x80\x80",
		"\x80", "\xbf", "\x80\xbf", "\x80\xbf\x80", "\x80\xbf\x80\xbf\x80\xbf", "\xc0 \xc1 \xc2 ", "\xe0 \xe1 \xef ", "\xf0 \xf3 ",
		"\xc0", "\xe0\x80", "\xf0\x80\x80", "\xdf", "\xef\xbf", "\xf7\xbf\xbf", "\xc0\xe0\x80\xf0\x80\x80", "\xfe", "\xff",
		"\xfe\xfe\xff\xff", "\xc0\xaf", "\xe0\x80\xaf", "\xf0\x80\x80\xaf", "\xc1\xbf", "\xe0\x9f\xbf", "\xf0\x8f\xbf\xbf",
		"\xc0\x80", "\xe0\x80\x80", "\xf0\x80\x80\x80", "\xed\xa0\x80", "\xed\xad\xbf", "\xed\xae\x80", "\xed\xaf\xbf",
		"\xed\xb0\x80", "\xed\xbf\xbf", "\xed\xa0\x80\xed\xb0\x80", "\xf4\x8f\xbf", "ok then \xc3(", "\xe2\x82",
	}
	var cases []conformance
	for _, s := range valid {
		cases = append(cases,
			conformance{fmt.Sprintf("text %q", s), fr(opText, s), []string{strings.TrimRight("text "+s, " ")}},
			conformance{fmt.Sprintf("text in bytes %q", s), inBytes(s), []string{strings.TrimRight("text "+s, " ")}})
	}
	for _, s := range invalid {
		cases = append(cases,
			conformance{fmt.Sprintf("no text %q", s), fr(opText, s), []string{"close 1007"}},
			conformance{fmt.Sprintf("no text in bytes %q", s), inBytes(s), []string{"close 1007"}},
			conformance{fmt.Sprintf("binary %q", s), fr(opBinary, s), []string{strings.TrimRight("binary "+s, " ")}})
	}
	return cases
}

// inBytes is s in frames of a byte each.
func inBytes(s string) []byte {
	all := fr(opText, "", "-")
	for i := range len(s) {
		all = append(all, fr(opMore, s[i:i+1], "-")...)
	}
	return append(all, fr(opMore, "")...)
}

// routes are echo servers on each route.
func routes(t testing.TB, opts Options) map[string]*Server {
	actor, mailbox := opts, opts
	actor.NewActor = echoActor
	mailbox.NewActor = func(c *Conn) Actor {
		events := c.Events()
		go func() {
			for ev := range events {
				_ = echo(ev)
			}
		}()
		return nil
	}
	return map[string]*Server{
		"stream":  start(t, tcpio.ListenerOptions{}, opts, func(ev Event) { _ = tryEcho(ev) }),
		"actor":   start(t, tcpio.ListenerOptions{}, actor, nil),
		"mailbox": start(t, tcpio.ListenerOptions{}, mailbox, nil),
	}
}

func tryEcho(ev Event) error {
	switch ev := ev.(type) {
	case Text:
		return ev.Conn.TryWriteText(ev.Data)
	case Binary:
		return ev.Conn.TryWriteBinary(ev.Data)
	}
	return nil
}

func TestConformance(t *testing.T) {
	for route, s := range routes(t, Options{}) {
		for _, c := range conformanceCases() {
			for _, cut := range []int{0, 1} {
				if cut > 0 && len(c.send) > 300 {
					continue
				}
				t.Run(fmt.Sprint(route, "/", cut, "/", c.name), func(t *testing.T) {
					p := dialPeer(t, s, "")
					want := c.want
					send := c.send
					if !strings.HasPrefix(want[len(want)-1], "close") {
						send, want = join(send, bye), append(slices.Clone(want), "close 1000")
					}
					if cut == 0 {
						p.send(send)
					} else {
						for i := range send {
							if _, err := p.Write(send[i : i+1]); err != nil {
								break // it has closed
							}
						}
					}
					p.expect(append(slices.Clone(want), "eof")...)
				})
			}
		}
	}
}
