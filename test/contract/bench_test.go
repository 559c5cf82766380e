//go:build linux

package contract

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// BenchmarkBlockedHandler has 100 connections send a request every 20 ms, for three seconds an
// iteration, and reports how long those wait that do not block. In "connection" the handler of one
// connection in a hundred sleeps 1 s in each of its requests; in "request" one request in a hundred
// does, on whichever connection. Run with -benchtime 3x.
//
// The promise is that blocking moves the others' p99 by no more than 10 ms. Measured on a virtual
// machine with 2 cores of an AMD EPYC, three runs, with the clients in a process of their own on
// the same cores:
//
//	p99, ms (p50)   1 loop              2 loops             blocked at once
//	none            1.9-4.5 (0.24-0.36) 2.4-3.1 (0.27-0.30)  0
//	connection      2.3-3.8 (0.29-0.31) 1.4-2.8 (0.22-0.26)  1
//	request         3.2-3.4 (0.17-0.23) 2.2-2.5 (0.16-0.23) 38
func BenchmarkBlockedHandler(b *testing.B) {
	for _, blocking := range []string{"none", "connection", "request"} {
		for _, loops := range []int{1, 2} {
			b.Run(fmt.Sprintf("%s/loops=%d", blocking, loops), func(b *testing.B) {
				benchBlocked(b, blocking, loops)
			})
		}
	}
}

const benchLength = 3 * time.Second

func benchBlocked(b *testing.B, blocking string, loops int) {
	const conns = 100
	var opened, requests atomic.Int64
	l := harness.Actor(b, tcpio.ListenerOptions{Loops: loops}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		switch ev := ev.(type) {
		case tcpio.Opened:
			ev.Conn.SetData(blocking == "connection" && opened.Add(1) == 1)
		case tcpio.Readable:
			var p [64]byte
			n, err := ev.Conn.TryRead(p[:])
			if err != nil {
				return nil
			}
			if ev.Conn.Data() == true || blocking == "request" && requests.Add(1)%100 == 0 {
				time.Sleep(time.Second)
				p[0] = 'B'
			}
			_, err = ev.Conn.TryWrite(p[:n])
			return err
		}
		return nil
	}))
	child := startPeers(b, "TestBenchmarkLoad", l, conns)
	most := 0
	for b.Loop() {
		child.Say(benchLength.String())
		stop := make(chan struct{})
		go func() {
			defer close(stop)
			child.Line("ran")
		}()
		for running := true; running; {
			most = max(most, l.Stats().Blocked)
			select {
			case <-stop:
				running = false
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	child.Say("0s")
	var p50, p99, p999 float64
	var blocked int
	if _, err := fmt.Sscan(child.Line(""), &p50, &p99, &p999, &blocked); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(p50, "p50-ms")
	b.ReportMetric(p99, "p99-ms")
	b.ReportMetric(p999, "p99.9-ms")
	b.ReportMetric(float64(blocked), "blocked-requests")
	b.ReportMetric(float64(most), "blocked-at-once")
}

// TestBenchmarkLoad is the child process of BenchmarkBlockedHandler. For each duration on its
// standard input it sends requests that long; for a zero it tells what it measured.
func TestBenchmarkLoad(t *testing.T) {
	conns := benchConns(t)
	const pause = 20 * time.Millisecond
	var mu sync.Mutex
	var took []time.Duration
	blocked := 0
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		length, err := time.ParseDuration(in.Text())
		if err != nil {
			t.Fatal(err)
		}
		if length == 0 {
			slices.Sort(took)
			at := func(q float64) float64 {
				return float64(took[int(q*float64(len(took)-1))]) / float64(time.Millisecond)
			}
			fmt.Println(at(0.5), at(0.99), at(0.999), blocked)
			continue
		}
		end := time.Now().Add(length)
		var wg sync.WaitGroup
		for i, c := range conns {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * pause / time.Duration(len(conns))) // spread them out
				var mine []time.Duration
				slow := 0
				for p := make([]byte, 64); time.Now().Before(end); time.Sleep(pause) {
					p[0] = 'r'
					begin := time.Now()
					if _, err := c.Write(p); err != nil {
						t.Error(err)
						return
					}
					if _, err := io.ReadFull(c, p); err != nil {
						t.Error(err)
						return
					}
					if p[0] == 'B' {
						slow++
					} else {
						mine = append(mine, time.Since(begin))
					}
				}
				mu.Lock()
				defer mu.Unlock()
				took = append(took, mine...)
				blocked += slow
			})
		}
		wg.Wait()
		fmt.Println("ran")
	}
}

// benchPeers, in the environment of a child, is the address to connect to and how often. The other
// ends of a benchmark's connections are in a process of their own: their goroutines, and the half
// of the descriptors, are then not the measured process's.
const benchPeers = "TCPIO_TEST_PEERS"

// startPeers runs the named test in a child, and returns when it has connected.
func startPeers(b *testing.B, test string, l *tcpio.Listener, conns int) *testnet.Child {
	child := testnet.StartChild(b, test, fmt.Sprintf("%s=%s %d", benchPeers, l.Addr(), conns))
	child.Line("ready")
	return child
}

// benchConns connects as the environment says; without it the test is skipped.
func benchConns(t *testing.T) []net.Conn {
	addr, count, ok := strings.Cut(os.Getenv(benchPeers), " ")
	if !ok {
		t.Skip("only a child process of a benchmark does this")
	}
	n, err := strconv.Atoi(count)
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]net.Conn, n)
	for i := range conns {
		if conns[i], err = net.Dial("tcp", addr); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conns[i].Close() })
		_ = conns[i].(*net.TCPConn).SetLinger(0) // no port is left in TIME_WAIT
	}
	fmt.Println("ready")
	return conns
}

// TestBenchmarkPeers is the child process of BenchmarkGroupWrite10000: the descriptors of both ends
// are too many for one. For every number n on its standard input it reads n bytes from each
// connection, and answers with a line.
func TestBenchmarkPeers(t *testing.T) {
	conns := benchConns(t)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		size, err := strconv.Atoi(in.Text())
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, size)
		for _, c := range conns {
			if _, err := io.ReadFull(c, p); err != nil {
				t.Fatal(err)
			}
		}
		fmt.Println("read")
	}
}

// BenchmarkGroupWrite10000 is one Write of 64 bytes to 10,000 members, and beside it 10,000 write
// system calls on the same descriptors. It reports both, and the ratio; the peers, in a process of
// their own, read while the clock stands.
//
// Measured on a virtual machine with 2 cores of an AMD EPYC, three runs of 20: 92-108 ms for the
// group, 107-119 ms for the system calls, ratio 0.86-0.98. It can be below one because the group's
// calls do not tell the scheduler, which the package syscall's do.
func BenchmarkGroupWrite10000(b *testing.B) {
	const members, size = 10_000, 64
	l, _ := writtenTo(b, tcpio.ListenerOptions{Loops: 1})
	child := startPeers(b, "TestBenchmarkPeers", l, members)
	var g tcpio.Group
	var fds []int
	for _, c := range harness.Conns(b, l, members) {
		g.Join(c)
		raw, err := c.SyscallConn()
		if err != nil {
			b.Fatal(err)
		}
		if err := raw.Control(func(fd uintptr) { fds = append(fds, int(fd)) }); err != nil {
			b.Fatal(err)
		}
	}
	p := make([]byte, size)
	var group, plain time.Duration
	write := func() {
		begin := time.Now()
		groupWrite(b, &g, p)
		group += time.Since(begin)
	}
	syscalls := func() {
		begin := time.Now()
		for _, fd := range fds {
			if n, err := syscall.Write(fd, p); n != size || err != nil {
				b.Fatalf("write: %d, %v", n, err)
			}
		}
		plain += time.Since(begin)
	}
	for i := 0; b.Loop(); i++ {
		if i%2 == 0 { // who comes first may find the caches warm, or cold
			write()
			syscalls()
		} else {
			syscalls()
			write()
		}
		b.StopTimer()
		child.Say(strconv.Itoa(2 * size))
		child.Line("read")
		b.StartTimer()
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(group.Microseconds())/float64(b.N)/1000, "group-ms")
	b.ReportMetric(float64(plain.Microseconds())/float64(b.N)/1000, "syscalls-ms")
	b.ReportMetric(float64(group)/float64(plain), "ratio")
}

// BenchmarkIdle leaves 1,000 connections with a pending timer each alone for two seconds an
// iteration, and reports the processor time and the voluntary context switches of the whole process
// in a second. Run with -benchtime 3x.
//
// Measured on a virtual machine with 2 cores of an AMD EPYC: 290-450 us and 4-6 switches without a
// connection, 330-400 us and 4-5 switches with 1,000, which is the Go runtime's own.
func BenchmarkIdle(b *testing.B) {
	for _, conns := range []int{0, 1000} {
		b.Run(fmt.Sprintf("conns=%d", conns), func(b *testing.B) {
			l, _ := writtenTo(b, tcpio.ListenerOptions{})
			for range conns {
				testnet.DialTCP(b, l)
			}
			for _, c := range harness.Conns(b, l, conns) {
				c.After(time.Hour, nil)
			}
			usage := func() (cpu time.Duration, switches int64) {
				var u syscall.Rusage
				if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
					b.Fatal(err)
				}
				return time.Duration(u.Utime.Nano() + u.Stime.Nano()), int64(u.Nvcsw)
			}
			const length = 2 * time.Second
			time.Sleep(length / 4) // the collector and the scheduler settle
			cpu, switches := usage()
			begin := time.Now()
			for b.Loop() {
				time.Sleep(length)
			}
			seconds := time.Since(begin).Seconds()
			cpuEnd, switchesEnd := usage()
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64((cpuEnd-cpu).Microseconds())/seconds, "cpu-us/s")
			b.ReportMetric(float64(switchesEnd-switches)/seconds, "switches/s")
		})
	}
}
