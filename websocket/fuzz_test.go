//go:build linux

package websocket

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsflate"
	"github.com/gobwas/ws/wsutil"

	"github.com/rabbit-backend/tcpio"
)

// oracle is what gobwas's blocking reader makes of a peer's bytes: the messages, and the code of
// the end.
func oracle(data []byte, limit int64) (lines []string, end Code) {
	control := func(h ws.Header, r io.Reader) error {
		p, err := io.ReadAll(r)
		switch {
		case err != nil || int64(len(p)) < h.Length:
			end = Abnormal
		case h.OpCode != opClose:
			return nil
		case len(p) == 0:
			end = NoStatus
		case len(p) == 1:
			end = ProtocolError
		default:
			end = Code(binary.BigEndian.Uint16(p))
			if !end.sendable() {
				end = ProtocolError
			} else if !utf8.Valid(p[2:]) {
				end = InvalidPayload
			}
		}
		return net.ErrClosed // not io.EOF, which io.ReadAll takes for the message's end
	}
	r := wsutil.Reader{Source: bytes.NewReader(data), State: ws.StateServerSide, CheckUTF8: true,
		MaxFrameSize: limit, MaxMessageSize: limit, OnIntermediate: control}
	failed := func(err error) Code {
		wrong := ws.ProtocolError("")
		switch {
		case end != 0:
			return end
		case err == wsutil.ErrInvalidUTF8:
			return InvalidPayload
		case err == wsutil.ErrFrameTooLarge, err == wsutil.ErrMessageTooLarge:
			return MessageTooBig
		case errors.As(err, &wrong), err == ws.ErrHeaderLengthMSB:
			return ProtocolError
		}
		return Abnormal
	}
	for {
		h, err := r.NextFrame()
		if err != nil {
			return lines, failed(err)
		}
		if h.OpCode.IsControl() {
			if control(h, &r) != nil {
				return lines, end
			}
			continue
		}
		p, err := io.ReadAll(&r)
		if err != nil {
			return lines, failed(err)
		}
		lines = append(lines, fmt.Sprintf("%d %q", h.OpCode, p))
	}
}

// What a peer sends, in parts of any size, leads to the events that gobwas's blocking reader says.
func FuzzFrames(f *testing.F) {
	const limit = 4 << 10
	type ended struct {
		lines []string
		code  Code
	}
	results := make(chan ended, 1)
	s := start(f, tcpio.ListenerOptions{Network: "unix", Addr: "@" + rand.Text()}, Options{
		MaxMessage: limit,
		NewActor: func(*Conn) Actor {
			var e ended
			return ActorFunc(func(ev Event) error {
				switch ev := ev.(type) {
				case Text:
					e.lines = append(e.lines, fmt.Sprintf("1 %q", ev.Data))
				case Binary:
					e.lines = append(e.lines, fmt.Sprintf("2 %q", ev.Data))
				case Closed:
					e.code = ev.Code
					results <- e
				}
				return nil
			})
		}}, nil)
	for i, c := range conformanceCases() {
		if i%4 == 0 || len(c.send) < 20 {
			f.Add(c.send, uint8(i%5))
		}
	}
	f.Add(join(fr(opText, long[:3000], "-"), fr(opPing, "p"), fr(opMore, long[:2000])), uint8(0))
	f.Add(join(fr(opText, "\xe2\x82", "-"), fr(opMore, "\xac"), fr(opBinary, long[:4096])), uint8(7))
	f.Fuzz(func(t *testing.T, data []byte, step uint8) {
		nc, err := net.Dial("unix", s.Listener().Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		_ = nc.SetDeadline(time.Now().Add(testLimit))
		all := append([]byte(handshakeOf+"\r\n"), data...)
		if step == 0 || len(data) > 2000 {
			_, _ = nc.Write(all)
		} else {
			_, _ = nc.Write(all[:len(handshakeOf)+2])
			for part := range slices.Chunk(data, int(step)) {
				if _, err := nc.Write(part); err != nil {
					break // it has closed
				}
			}
		}
		_ = nc.(*net.UnixConn).CloseWrite()
		if _, err := io.Copy(io.Discard, nc); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Log(err)
		}
		got := <-results
		lines, code := oracle(data, limit)
		if !slices.Equal(got.lines, lines) || got.code != code {
			t.Errorf("%q, %d; the oracle says %q, %d", got.lines, got.code, lines, code)
		}
	})
}

// inflateAll decompresses a message as the turns of a connection do.
func inflateAll(p []byte, limit int) ([]byte, Code) {
	p = bytes.Clone(p)
	u := unpack(p)
	defer u.free()
	for {
		done, code := u.inflate(limit)
		if done || code != 0 {
			return bytes.Clone(u.z.b), code
		}
		u.keep()
		clear(p) // another turn may have the memory
	}
}

// Decompression gives what wsflate gives, or an error where it does, and never more than the limit.
func FuzzInflate(f *testing.F) {
	const limit = 600 << 10 // more than one turn's
	for _, s := range []string{"", "hello", "hello hello hello hello", string(make([]byte, 2*limit))} {
		f.Add([]byte(pack(s)))
	}
	f.Add([]byte("\xff\xff"))
	f.Fuzz(func(t *testing.T, p []byte) {
		z, code := inflateAll(p, limit)
		r := wsflate.NewReader(bytes.NewReader(p), wsflate.DefaultHelper.Decompressor)
		plain, err := io.ReadAll(io.LimitReader(r, limit+1))
		switch {
		case len(plain) > limit:
			if code != MessageTooBig {
				t.Errorf("code %d for more than the limit", code)
			}
		case err != nil:
			if code != InvalidPayload {
				t.Errorf("code %d, wsflate: %v", code, err)
			}
		case code != 0 || !bytes.Equal(z, plain):
			t.Errorf("code %d, %d bytes; wsflate: %d bytes", code, len(z), len(plain))
		}
		if back, code := inflateAll(deflate(p).b, len(p)); code != 0 || !bytes.Equal(back, p) {
			t.Errorf("there and back: code %d, %d bytes of %d", code, len(back), len(p))
		}
	})
}
