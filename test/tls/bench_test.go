//go:build linux

package tls_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// BenchmarkIdleTLS is the memory of an idle TLS 1.3 connection behind its handshake and one round
// trip, of 2,000, and beside it that of Go's own server with a goroutine for each, which reads into
// 64 bytes of its stack. It reports heap and stacks in use, what the process has resident, and the
// ratio of the former. The clients are in a process of their own. Run with -benchtime 3x.
//
// The promise is half. Measured on a virtual machine with 2 cores of an AMD EPYC, Go 1.26: 7,900
// bytes against 17,900 in use, ratio 0.44 (0.46 in a single run), and 8,300 against 18,600
// resident.
//
// Where the rest goes, by the heap profile, in bytes a connection, all but the last in crypto/tls
// and the same for both: 3,600 in the two buffers that the ClientHello was read into, which
// tls.Conn keeps (1.5 KiB of it are the client's post-quantum key); 1,800 in the two AES-GCM
// ciphers; 900 in the tls.Conn; 250 in secrets; and 560 of tcpio's own, Conn, connExt and tlsState.
// Go's server has 8,100 of stack instead, and 400 for its descriptor and addresses.
func BenchmarkIdleTLS(b *testing.B) {
	const conns = 2000
	var inUse, resident [2]float64
	for b.Loop() {
		for i, server := range []string{"tcpio", "net"} {
			addr, stop := serveTLSEcho(b, server)
			before, rssBefore := settle(b)
			goroutines := runtime.NumGoroutine()
			child := testnet.StartChild(b, "TestBenchmarkTLSPeers", fmt.Sprintf("%s=%s %d", benchPeers, addr, conns))
			child.Line("ready")
			after, rssAfter := settle(b)
			inUse[i] += float64(after-before) / conns
			resident[i] += float64(rssAfter-rssBefore) / conns
			if n := runtime.NumGoroutine() - goroutines; server == "tcpio" && n > 20 {
				b.Errorf("%d goroutines more with %d idle connections", n, conns)
			}
			child.Say("end")
			child.Line("ended")
			stop()
		}
	}
	b.ReportMetric(0, "ns/op")
	n := float64(b.N)
	b.ReportMetric(inUse[0]/n, "tcpio-B/conn")
	b.ReportMetric(inUse[1]/n, "net-B/conn")
	b.ReportMetric(resident[0]/n, "tcpio-rss-B/conn")
	b.ReportMetric(resident[1]/n, "net-rss-B/conn")
	b.ReportMetric(inUse[0]/inUse[1], "ratio")
}

// benchPeers, in the environment of a child, is the address to connect to and how often.
const benchPeers = "TCPIO_TEST_PEERS"

// settle collects garbage, of which pools need two rounds, and returns heap and stacks in use, and
// what is resident.
func settle(b *testing.B) (inUse, resident int64) {
	for range 3 {
		debug.FreeOSMemory()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Fatal(err)
	}
	var size, pages int64
	if _, err := fmt.Sscan(string(statm), &size, &pages); err != nil {
		b.Fatal(err)
	}
	return int64(m.HeapInuse + m.StackInuse), pages * int64(os.Getpagesize())
}

// serveTLSEcho answers as tlsEcho does, on a listener of tcpio or with a goroutine for every
// connection.
func serveTLSEcho(b *testing.B, server string) (addr string, stop func()) {
	if server == "tcpio" {
		l, _ := harness.TLS(b, tcpio.ListenerOptions{}, harness.EchoActor)
		return l.Addr().String(), func() { l.Close() }
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", testnet.ServerTLS())
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				var p [64]byte
				for {
					n, err := c.Read(p[:])
					if err != nil {
						return
					}
					if _, err := c.Write(p[:n]); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String(), func() { l.Close() }
}

// TestBenchmarkTLSPeers is the child process of BenchmarkIdleTLS: each of its connections makes one
// round trip.
func TestBenchmarkTLSPeers(t *testing.T) {
	addr, count, ok := strings.Cut(os.Getenv(benchPeers), " ")
	if !ok {
		t.Skip("only a child process of a benchmark does this")
	}
	var n int
	_, _ = fmt.Sscan(count, &n)
	for range n {
		raw, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true})
		if _, err := c.Write(make([]byte, 64)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 64)); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Println("ready")
	bufio.NewScanner(os.Stdin).Scan()
	fmt.Println("ended")
}
