//go:build linux

package tls_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// FuzzTLSHello sends any bytes to a TLS listener, in pieces of any size, and FIN: the connection
// ends and counts as a failed handshake, no Opened comes, and the answer is whole TLS
// records. What is no TLS at all is answered with the alert.
func FuzzTLSHello(f *testing.F) {
	hello := testnet.ClientHello()
	f.Add(hello, uint16(1000))
	f.Add(hello[:len(hello)-1], uint16(7))
	f.Add(append(bytes.Clone(hello), 23, 3, 3, 0, 1, 0), uint16(2))
	f.Add([]byte{22, 3, 1, 0, 0, 22, 3, 1, 0xff, 0xff}, uint16(3))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), uint16(1))
	f.Add([]byte{}, uint16(1))
	opts := tcpio.ListenerOptions{TLSConfig: testnet.ServerTLS()}
	l := harness.Stream(f, opts, func(ev tcpio.Event) {
		if _, failed := ev.(tcpio.Failed); !failed {
			f.Errorf("%T", ev)
		}
	})
	f.Fuzz(func(t *testing.T, in []byte, size uint16) {
		before := l.Stats()
		peer, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer peer.Close()
		peer.SetDeadline(time.Now().Add(testnet.Limit))
		go func() { // the server may end first, so a failure is no news
			for rest := in; len(rest) > 0; {
				n := min(len(rest), int(size)+1)
				if _, err := peer.Write(rest[:n]); err != nil {
					return
				}
				rest = rest[n:]
			}
			_ = peer.(*net.TCPConn).CloseWrite()
		}()
		out, err := io.ReadAll(peer)
		if err != nil {
			t.Fatalf("% x, then %v", out, err)
		}
		if alert := []byte{21, 3, 1, 0, 2, 2, 10}; len(in) > 0 && in[0] != 22 && !bytes.Equal(out, alert) {
			t.Errorf("plain text was answered with % x", out)
		}
		for rest := out; len(rest) > 0; {
			if len(rest) < 5 || rest[0] < 20 || rest[0] > 23 || len(rest) < 5+int(binary.BigEndian.Uint16(rest[3:])) {
				t.Fatalf("no TLS record: % x", rest)
			}
			rest = rest[5+int(binary.BigEndian.Uint16(rest[3:])):]
		}
		peer.Close()
		testnet.WaitFor(t, "the connection is counted", func() bool { return l.Stats().Closed == before.Closed+1 })
		if n := l.Stats().HandshakesFailed - before.HandshakesFailed; n != 1 {
			t.Errorf("%d failed handshakes are counted", n)
		}
	})
}
