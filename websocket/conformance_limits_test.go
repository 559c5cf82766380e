//go:build linux

package websocket

import (
	"bytes"
	"compress/flate"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsflate"
)

// What is no UTF-8 ends the connection as soon as it has come, while the rest of the frame, or of
// the message, is still awaited.
func TestBadTextFailsFast(t *testing.T) {
	for route, s := range routes(t, Options{}) {
		for name, send := range map[string][]byte{
			"in the first fragment":       fr(opText, "ok \xce\xba\xed\xa0\x80", "-"),
			"in a later fragment":         join(fr(opText, "ok \xf4", "-"), fr(opMore, "\x90", "-")),
			"in the middle of a frame":    fr(opText, "\xff"+long)[:20],
			"in the middle of a fragment": join(fr(opText, "ok", "-"), fr(opMore, "\xed\xbf\xbf"+long[:200], "-")[:20]),
			"across two segments":         fr(opText, "\xf4\x90"+long[:200])[:10],
		} {
			t.Run(route+" "+name, func(t *testing.T) {
				p := dialPeer(t, s, "")
				p.send(send)
				p.expect("close 1007", "eof")
			})
		}
	}
}

// Messages up to 16 MiB, whole, in fragments of 64 bytes to 1 MiB, and in segments of 64 bytes to
// 2 KiB; and many small ones, one behind the other and all at once.
func TestConformanceOfSizes(t *testing.T) {
	most := 1 << 20
	if byteFragments > 1<<20 && !raceEnabled { // -tags long
		most = 16 << 20
	}
	all := make([]byte, most)
	for i := range all {
		all[i] = byte('a' + i%23)
	}
	for route, s := range routes(t, Options{MaxMessage: most}) {
		if route == "stream" {
			continue // tryEcho has to find room
		}
		exchange := func(t *testing.T, send []byte, step, want int) {
			t.Helper()
			p := dialPeer(t, s, "")
			sent := make(chan error, 1)
			go func() {
				for part := range slices.Chunk(send, step) {
					if _, err := p.Write(part); err != nil {
						sent <- err
						return
					}
				}
				sent <- nil
			}()
			h, b, err := readFrame(p.br)
			for err == nil && !h.Fin {
				var more []byte
				h, more, err = readFrame(p.br)
				b = append(b, more...)
			}
			if err != nil || !bytes.Equal(b, all[:want]) {
				t.Fatalf("%v: %d bytes of %d", err, len(b), want)
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
		}
		for _, op := range []ws.OpCode{opText, opBinary} {
			for size := 64 << 10; size <= most; size *= 4 {
				t.Run(fmt.Sprintf("%s/whole/%d/%d", route, op, size), func(t *testing.T) {
					exchange(t, fr(op, string(all[:size])), size+14, size)
				})
			}
			for fragment := 64; fragment <= 1<<20; fragment *= 16 {
				size := min(most, fragment*64<<10)
				t.Run(fmt.Sprintf("%s/fragments/%d/%d", route, op, fragment), func(t *testing.T) {
					send := fr(op, "", "-")
					for part := range slices.Chunk(all[:size], fragment) {
						send = append(send, fr(opMore, string(part), "-")...)
					}
					exchange(t, append(send, fr(opMore, "")...), len(send), size)
				})
			}
			for step := 64; step <= 2048; step *= 4 {
				size := min(most, 1<<20, step<<13)
				t.Run(fmt.Sprintf("%s/segments/%d/%d", route, op, step), func(t *testing.T) {
					exchange(t, fr(op, string(all[:size])), step, size)
				})
			}
		}
		for size := 0; size <= 4<<10; size = max(16, size*4) {
			t.Run(fmt.Sprintf("%s/small/%d", route, size), func(t *testing.T) {
				const n = 1000
				p := dialPeer(t, s, "")
				one := fr(opText, string(all[:size]))
				go p.Write(slices.Repeat(one, n)) // what is not answered is seen below
				for i := range 2 * n {
					if i >= n {
						p.send(one)
					}
					h, b, err := readFrame(p.br)
					if err != nil || h.OpCode != opText || !bytes.Equal(b, all[:size]) {
						t.Fatalf("message %d: %v, %d bytes", i, err, len(b))
					}
				}
			})
		}
	}
}

// Compressed messages of 16 bytes to 128 KiB, text that repeats itself and noise, whole and in
// fragments, by each kind of block that DEFLATE has, and by windows that are smaller than ours.
func TestDeflateOfSizes(t *testing.T) {
	rounds := 5
	if byteFragments > 1<<20 && !raceEnabled { // -tags long
		rounds = 100
	}
	levels := map[string]int{"stored": flate.NoCompression, "fixed or dynamic": flate.BestSpeed, "best": flate.BestCompression, "Huffman alone": flate.HuffmanOnly}
	rnd := rand.New(rand.NewPCG(3, 4))
	noise := make([]byte, 128<<10)
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	line := []byte(strings.Repeat(`{"name": "Ελένη", "text": "Good morning! Is the new build out?", "n": 12345}`, 1<<11)[:128<<10])
	for route, s := range routes(t, Options{Compress: true, CompressMin: 1, MaxMessage: 1 << 20}) {
		for name, level := range levels {
			t.Run(route+"/"+name, func(t *testing.T) {
				var z bytes.Buffer
				w, err := flate.NewWriter(&z, level)
				if err != nil {
					t.Fatal(err)
				}
				p := dialPeer(t, s, offer)
				p.SetDeadline(time.Now().Add(3 * testLimit))
				for size := 16; size <= 128<<10; size *= 2 {
					for round := range rounds {
						plain := [][]byte{line, noise}[round%2][:size]
						z.Reset()
						w.Reset(&z)
						for part := range slices.Chunk(plain, max(1, size/(1+round%3))) { // blocks
							_, _ = w.Write(part)
							if err := w.Flush(); err != nil {
								t.Fatal(err)
							}
						}
						packed := bytes.TrimSuffix(z.Bytes(), []byte("\x00\x00\xff\xff"))
						if round%2 == 0 {
							p.send(fr(opBinary, string(packed), "1"))
						} else {
							send := fr(opBinary, "", "1", "-")
							for part := range slices.Chunk(packed, 256) {
								send = append(send, fr(opMore, string(part), "-")...)
							}
							p.send(append(send, fr(opMore, "")...))
						}
						h, b, err := readFrame(p.br)
						for err == nil && !h.Fin {
							rsv := h.Rsv
							var more []byte
							h, more, err = readFrame(p.br)
							b, h.Rsv = append(b, more...), rsv
						}
						if err == nil && h.Rsv1() {
							b, err = wsflate.DefaultHelper.Decompress(b)
						}
						if err != nil || !bytes.Equal(b, plain) {
							t.Fatalf("%d bytes: %v, %d come back", size, err, len(b))
						}
					}
				}
			})
		}
	}
}
