//go:build linux

package tls_test

import (
	"crypto/tls"
	"io"
	"net"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// heapInUse is the live heap behind a collection that empties pools too.
func heapInUse() int64 {
	for range 3 {
		runtime.GC()
	}
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// What stays on an idle connection is what crypto/tls keeps of the largest record it has seen, and
// of an unfinished record about as much as has come of it. The figures are in doc.go; the log has
// today's.
func TestTLSMemoryOfAnIdleConnectionIsBounded(t *testing.T) {
	const conns = 50
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, tt := range []struct {
			name  string
			data  int    // bytes of plain text
			raw   []byte // behind them, as they are
			bound int64  // bytes a connection, above one that is idle behind its handshake
		}{
			{"a message of 5 bytes", 5, nil, 2 << 10},
			{"the header of a record of 16 KiB", 0, []byte{23, 3, 3, 0x40, 0x10}, 2 << 10},
			{"an upload of 1 MiB", 1 << 20, nil, 36 << 10},
			{"an upload, and all of a record but its end", 1 << 20, append([]byte{23, 3, 3, 0x40, 0x10}, make([]byte, 16000)...), 56 << 10},
		} {
			t.Run(tls.VersionName(version)+", "+tt.name, func(t *testing.T) {
				if testing.Short() {
					t.Skip()
				}
				p := make([]byte, 64<<10)
				var read atomic.Int64 // of plain text
				l := harness.Stream(t, tcpio.ListenerOptions{TLSConfig: testnet.ServerTLS()}, func(ev tcpio.Event) {
					if r, ok := ev.(tcpio.Readable); ok {
						n, err := r.Conn.TryRead(p)
						if read.Add(int64(n)); err != nil && err != tcpio.ErrWouldBlock {
							r.Conn.Close()
						}
					}
				})
				config := testnet.ClientTLS()
				config.MinVersion, config.MaxVersion = version, version
				// Both ends of a connection are in this process: only what comes on top is measured.
				var clients []*tls.Conn
				upload := make([]byte, tt.data)
				for range conns {
					c := testnet.DialTLS(t, l, config)
					testnet.Send(t, c, "x")
					clients = append(clients, c)
				}
				testnet.WaitFor(t, "the first bytes", func() bool { return read.Load() == conns })
				before := heapInUse()
				base := l.Stats().BytesIn
				for _, c := range clients {
					if tt.data > 0 {
						testnet.Send(t, c, upload)
					}
					testnet.Send(t, c.NetConn(), tt.raw)
				}
				testnet.WaitFor(t, "the bytes", func() bool {
					return read.Load() == int64(conns*(1+tt.data)) && l.Stats().BytesIn >= base+uint64(conns*(tt.data+len(tt.raw)))
				})
				got := (heapInUse() - before) / conns
				t.Logf("%d bytes more a connection", got)
				if got > tt.bound {
					t.Errorf("%d bytes more stay on a connection, want %d at most", got, tt.bound)
				}
				runtime.KeepAlive(clients)
				runtime.KeepAlive(upload)
			})
		}
	}
}

// An unfinished message costs what it is long, up to two records of the largest size; a third ends
// the connection.
func TestTLSMemoryOfAnUnfinishedMessageIsBounded(t *testing.T) {
	const conns = 20
	l, _ := harness.TLS(t, tcpio.ListenerOptions{CloseTimeout: 20 * time.Millisecond}, harness.EchoActor)
	var writers []*recordWriter
	for range conns {
		w, c := dialRecords(t, l)
		testnet.Ping(t, c, "x")
		w.use(w.secret)
		w.seq = 1 // behind the client's own
		writers = append(writers, w)
	}
	before, in := heapInUse(), l.Stats().BytesIn
	sent := 0
	for _, w := range writers {
		msg := append([]byte{11, 3, 0, 0}, make([]byte, 15<<10)...)
		b := append(w.record(recHandshake, msg), w.record(recHandshake, msg)...)
		sent += len(b)
		w.send(b)
	}
	testnet.WaitFor(t, "the records", func() bool { return l.Stats().BytesIn == in+uint64(sent) })
	got := (heapInUse() - before) / conns
	t.Logf("%d bytes more a connection", got)
	if got > 66<<10 {
		t.Errorf("%d bytes stay on a connection for an unfinished message", got)
	}
	if l.Len() != conns {
		t.Errorf("%d connections are left of %d", l.Len(), conns)
	}
	for _, w := range writers {
		w.send(w.record(recHandshake, []byte{0}))
	}
	testnet.WaitFor(t, "the ends of all of them", func() bool { return l.Len() == 0 })
}

// 5,000 idle connections, 500 under the race detector, leave the number of goroutines where it was.
func TestTLSIdleConnectionsHaveNoGoroutine(t *testing.T) {
	n := 500
	if testnet.Long && !testnet.Race {
		n = 5000
	}
	l, _ := harness.TLS(t, tcpio.ListenerOptions{HandshakeTimeout: time.Hour}, harness.EchoActor) // the last one waits for all others
	first := testnet.DialTLS(t, l, testnet.ClientTLS())
	testnet.Ping(t, first, "x")
	before := harness.Goroutines(t, l)
	// One in ten makes a whole handshake. The others resume a session of TLS 1.2, which costs next
	// to nothing.
	resume := testnet.ClientTLS()
	resume.MaxVersion, resume.ClientSessionCache = tls.VersionTLS12, tls.NewLRUClientSessionCache(1)
	testnet.Ping(t, testnet.DialTLS(t, l, resume), "x")
	conns := make(chan net.Conn, n)
	for range n {
		conns <- testnet.Dial(t, l)
	}
	close(conns)
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			i := 0
			for raw := range conns {
				config := resume
				if i++; i%10 == 0 {
					config = testnet.ClientTLS()
				}
				c := tls.Client(raw, config)
				if _, err := c.Write([]byte("x")); err != nil {
					t.Error(err)
				}
				if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	clients.Wait()
	testnet.WaitFor(t, "the goroutines of the handshakes", func() bool { return runtime.NumGoroutine() <= before+5 })
	t.Logf("%d goroutines before, %d with %d idle connections", before, runtime.NumGoroutine(), n)
}
