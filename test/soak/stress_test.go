//go:build linux

package soak

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// Thousands of connections, each sending its own token and expecting nothing but it, are closed at
// random from both ends, in order or by reset, with descriptors and slots reused all the time.
func TestEveryConnectionSeesItsOwnBytesOnly(t *testing.T) {
	total := 1000
	if testnet.Long {
		total = 4000
	}
	for _, opts := range []tcpio.ListenerOptions{
		{},
		{Loops: 3, EventBuffer: 8},
	} {
		t.Run(fmt.Sprintf("loops %d", opts.Loops), func(t *testing.T) {
			stressTokens(t, opts, total/2)
		})
	}
}

func stressTokens(t *testing.T, opts tcpio.ListenerOptions, total int) {
	var opened, closed atomic.Int64
	buf := make([]byte, 4096)
	rng := rand.New(rand.NewPCG(1, 2)) // the server's side, on the consumer's goroutine
	l := harness.Stream(t, opts, func(ev tcpio.Event) {
		switch ev := ev.(type) {
		case tcpio.Opened:
			opened.Add(1)
		case tcpio.Closed:
			closed.Add(1)
		case tcpio.Readable:
			n, err := ev.Conn.TryRead(buf)
			if err == io.EOF {
				ev.Conn.Close()
			}
			if err != nil {
				return
			}
			if _, err := ev.Conn.TryWrite(buf[:n]); err != nil && !testnet.Benign(err) {
				t.Errorf("TryWrite: %v", err)
			}
			switch rng.IntN(40) {
			case 0:
				ev.Conn.Close()
			case 1:
				ev.Conn.Abort()
			case 2:
				ev.Conn.CloseWrite()
			case 3:
				c := ev.Conn
				go func() { // from elsewhere, at any moment
					c.Post("token")
					c.TryRead(nil)
					if c.ID()%2 == 0 {
						c.Abort()
					} else {
						c.Close()
					}
				}()
			}
		}
	})
	const workers = 100
	var next atomic.Uint64
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(3, uint64(w)))
			for {
				n := next.Add(1)
				if n > uint64(total) {
					return
				}
				if err := tokenClient(l, n, rng); err != nil {
					t.Errorf("client %d: %v", n, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	// Some never came out of the backlog before their peer was gone. Each that was opened is closed
	// in the end.
	testnet.WaitFor(t, "Closed of every connection opened", func() bool { return l.Len() == 0 && closed.Load() == opened.Load() })
	if n := opened.Load(); n == 0 || n > int64(total) {
		t.Errorf("%d Opened for %d clients", n, total)
	}
}

// tokenClient talks until one of the two has had enough. Whatever comes back must be what was sent.
func tokenClient(l *tcpio.Listener, n uint64, rng *rand.Rand) error {
	peer, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return err
	}
	defer peer.Close()
	peer.SetDeadline(time.Now().Add(testnet.Limit))
	token := binary.BigEndian.AppendUint64(nil, n*0x9E3779B97F4A7C15)
	msg := bytes.Repeat(token, 1+rng.IntN(100))
	got := make([]byte, len(msg))
	for range 1 + rng.IntN(30) {
		_, werr := peer.Write(msg)
		m, rerr := io.ReadFull(peer, got)
		if !bytes.Equal(got[:m], msg[:m]) {
			return fmt.Errorf("somebody else's bytes: % x", got[:m])
		}
		if err := errors.Join(werr, rerr); err != nil {
			if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
				return fmt.Errorf("stalled after %d of %d bytes: %w", m, len(msg), err)
			}
			return nil // the server had enough
		}
	}
	switch rng.IntN(3) {
	case 0:
		peer.(*net.TCPConn).SetLinger(0)
	case 1:
		peer.(*net.TCPConn).CloseWrite()
		rest, err := io.ReadAll(peer)
		if len(rest) > 0 {
			return fmt.Errorf("%d bytes more than were sent", len(rest))
		}
		if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
			return fmt.Errorf("no end after the half-close: %w", err)
		}
	}
	return nil
}
