//go:build linux

package websocket

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	coder "github.com/coder/websocket"
	"github.com/gobwas/ws"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// randomFrames is frames that are right, for the most part.
func randomFrames(rnd *rand.Rand, compress bool) []byte {
	var all []byte
	inside := false
	for range 1 + rnd.IntN(8) {
		text := strings.Repeat(string(rune('a'+rnd.IntN(26))), rnd.IntN(rnd.IntN(300)+1))
		var flags []string
		op := []ws.OpCode{opText, opBinary, opText, opPing, opPong}[rnd.IntN(5)]
		if inside && op < 8 {
			op = opMore
		}
		if op < 8 {
			if inside = rnd.IntN(3) == 0; inside {
				flags = append(flags, "-")
			}
		} else {
			text = text[:min(len(text), 125)]
		}
		if compress && (op == opText || op == opBinary) && !inside && rnd.IntN(2) == 0 {
			text = pack(text)
			if rnd.IntN(20) == 0 {
				text = "\xff" + text // which is no DEFLATE
			}
			flags = append(flags, "1")
		}
		switch rnd.IntN(60) {
		case 0:
			op = ws.OpCode(rnd.IntN(16))
		case 1:
			flags = append(flags, "2")
		case 2:
			flags = append(flags, "-")
		case 3:
			flags = append(flags, "u")
		}
		if op == opClose {
			text = closeOf(uint16(990+rnd.IntN(30)), "")
		}
		all = append(all, fr(op, text, flags...)...)
	}
	return all
}

// The same bytes lead to the same frames as with coder/websocket's server. It does not check UTF-8,
// and after a violation it may reset the connection before its Close frame is read.
func TestBesideCoder(t *testing.T) {
	for _, compress := range []bool{false, true} {
		t.Run(fmt.Sprint("compress ", compress), func(t *testing.T) { besideCoder(t, compress) })
	}
}

func besideCoder(t *testing.T, compress bool) {
	header, mode := "", coder.CompressionDisabled
	if compress {
		header, mode = offer, coder.CompressionNoContextTakeover
	}
	const never = 1 << 30 // bytes, from which on an answer is compressed: what differs is not compared
	ours := start(t, tcpio.ListenerOptions{}, Options{NewActor: echoActor, Compress: compress, CompressMin: never}, nil)
	ended := make(chan struct{}, 1)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() { ended <- struct{}{} }()
		c, err := coder.Accept(w, r, &coder.AcceptOptions{CompressionMode: mode, CompressionThreshold: never})
		if err != nil {
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(1 << 20)
		for {
			kind, p, err := c.Read(context.Background())
			if err != nil || c.Write(context.Background(), kind, p) != nil {
				return
			}
		}
	}))
	defer web.Close()
	answers := func(p *peer, send []byte) (lines []string) {
		if _, err := p.Write(join(send, bye)); err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		for {
			line := p.next()
			if line == "eof" || line == "cut" {
				return lines
			}
			if f := strings.Fields(line); f[0] == "close" && len(f) > 1 {
				line = "close " + f[1] // not the reason
			}
			lines = append(lines, line)
		}
	}
	cases := slices.DeleteFunc(conformanceCases(), func(c conformance) bool {
		return strings.Contains(c.name, "UTF-8") || strings.HasPrefix(c.name, "no text") || !utf8.Valid(c.send) && strings.HasPrefix(c.name, "text in bytes") ||
			strings.HasPrefix(c.name, "length a terabyte") // over the limit of both, and one reads on
	})
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 500 {
		cases = append(cases, conformance{name: fmt.Sprint("random ", i), send: randomFrames(rnd, compress)})
	}
	compared, cut := 0, 0
	for _, c := range cases {
		a := answers(dialPeer(t, ours, header), c.send)
		b := answers(peerAt(t, web.Listener.Addr(), header), c.send)
		// It gives its buffers to pools before it has done with them, so the next one waits.
		testnet.Receive(t, "coder's handler has ended", ended)
		if len(b) == 0 || !strings.HasPrefix(b[len(b)-1], "close") {
			cut++
			if len(b) > len(a) || !slices.Equal(b, a[:len(b)]) {
				t.Errorf("%s: %q, coder %q", c.name, a, b)
			}
			continue
		}
		if compared++; !slices.Equal(a, b) {
			t.Errorf("%s: %q, coder %q", c.name, a, b)
		}
	}
	t.Logf("%d the same, of %d coder's end was not seen", compared, cut)
}
