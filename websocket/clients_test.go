//go:build linux

package websocket

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	coder "github.com/coder/websocket"
	gorilla "github.com/gorilla/websocket"
)

// Clients of others, with and without compression, get back what they send, and both sides agree on
// how it ends.
func TestClients(t *testing.T) {
	sizes := []int{0, 1, 125, 126, 4095, 65535, 65536, 200000, 900000}
	for _, compress := range []bool{false, true} {
		for route, s := range routes(t, Options{Compress: compress, Subprotocols: []string{"p"}}) {
			url := "ws://" + s.Listener().Addr().String() + "/"
			messages := func(yield func(text bool, p []byte) bool) {
				for i, n := range sizes {
					if route == "stream" && n > 500000 {
						continue // TryWrite would have to find room
					}
					p := bytes.Repeat([]byte("0123456789"), n/10+1)[:n]
					if i%2 == 0 {
						for j := range p {
							p[j] = byte(rand.Uint32())
						}
					}
					if !yield(i%2 == 1, p) {
						return
					}
				}
			}
			t.Run(fmt.Sprint("coder ", route, compress), func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), testLimit)
				defer cancel()
				mode := coder.CompressionDisabled
				if compress {
					mode = coder.CompressionNoContextTakeover
				}
				c, _, err := coder.Dial(ctx, url, &coder.DialOptions{CompressionMode: mode, Subprotocols: []string{"p"}})
				if err != nil {
					t.Fatal(err)
				}
				defer c.CloseNow()
				c.SetReadLimit(1 << 21)
				if c.Subprotocol() != "p" {
					t.Error(c.Subprotocol())
				}
				for text, p := range messages {
					kind := coder.MessageBinary
					if text {
						kind = coder.MessageText
					}
					if err := c.Write(ctx, kind, p); err != nil {
						t.Fatal(err)
					}
					if k, got, err := c.Read(ctx); err != nil || k != kind || !bytes.Equal(got, p) {
						t.Fatalf("%v %v, %d bytes of %d", k, err, len(got), len(p))
					}
				}
				if err := c.Close(coder.StatusNormalClosure, "bye"); err != nil {
					t.Error(err)
				}
			})
			t.Run(fmt.Sprint("gorilla ", route, compress), func(t *testing.T) {
				d := gorilla.Dialer{EnableCompression: compress, Subprotocols: []string{"p"}, WriteBufferSize: 1000}
				c, _, err := d.Dial(url, nil)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				_ = c.SetReadDeadline(time.Now().Add(testLimit))
				for text, p := range messages {
					kind := gorilla.BinaryMessage
					if text {
						kind = gorilla.TextMessage
					}
					w, err := c.NextWriter(kind) // fragments of 1,000 bytes
					if err != nil {
						t.Fatal(err)
					}
					_, _ = w.Write(p)
					if err := w.Close(); err != nil {
						t.Fatal(err)
					}
					if k, got, err := c.ReadMessage(); err != nil || k != kind || !bytes.Equal(got, p) {
						t.Fatalf("%v %v, %d bytes of %d", k, err, len(got), len(p))
					}
				}
				_ = c.WriteMessage(gorilla.CloseMessage, gorilla.FormatCloseMessage(4321, "bye"))
				_, _, err = c.ReadMessage()
				if end := new(gorilla.CloseError); !errors.As(err, &end) || end.Code != 4321 {
					t.Error(err)
				}
			})
		}
	}
}
