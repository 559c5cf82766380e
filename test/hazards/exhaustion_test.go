//go:build linux

package hazards

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

const exhaustedEnv = "TCPIO_TEST_EXHAUSTED"

// TestExhaustedChild is the server of TestDescriptorsExhausted, in a process of its own whose
// descriptors run out. It answers each line on its standard input with "processor time in ns,
// Failed events, connections".
func TestExhaustedChild(t *testing.T) {
	if os.Getenv(exhaustedEnv) == "" {
		t.Skip("runs in a process of its own only")
	}
	var failed atomic.Int64
	handle := harness.Echo(t)
	l := harness.Stream(t, tcpio.ListenerOptions{Loops: 2}, func(ev tcpio.Event) {
		if ev, ok := ev.(tcpio.Failed); ok {
			if failed.Add(1) == 1 {
				fmt.Printf("first: %v\n", ev.Err)
			}
		}
		handle(ev)
	})
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	old := limit
	limit.Cur = 40
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &old)
	fmt.Printf("listening on %s\n", l.Addr())
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		fmt.Printf("state %d %d %d\n", testnet.CPU(t), failed.Load(), l.Len())
	}
}

func TestDescriptorsExhausted(t *testing.T) {
	t.Parallel()
	child := testnet.StartChild(t, "TestExhaustedChild", exhaustedEnv+"=1")
	addr := child.Line("listening on ")
	state := func() (cpu time.Duration, failed, conns int) {
		t.Helper()
		child.Say("")
		if _, err := fmt.Sscan(child.Line("state "), &cpu, &failed, &conns); err != nil {
			t.Fatal(err)
		}
		return
	}

	const clients = 80
	answered := make(chan net.Conn, clients) // clients that were served
	for i := range clients {
		peer, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer peer.Close()
		peer.SetDeadline(time.Now().Add(2 * testnet.Limit))
		testnet.Send(t, peer, []byte{byte(i)})
		go func() {
			if n, _ := peer.Read(make([]byte, 1)); n == 1 {
				answered <- peer
			}
		}()
	}
	testnet.WaitFor(t, "Failed", func() bool { _, failed, _ := state(); return failed > 0 })

	// It idles meanwhile: neither processor time nor a flood of Failed.
	const window = 2 * time.Second
	start := time.Now()
	cpu0, failed0, _ := state()
	<-time.After(window)
	cpu1, failed1, conns := state()
	if used := cpu1 - cpu0; used > window/5 {
		t.Errorf("%v of processor time in %v of exhaustion", used, window)
	}
	if n, d := failed1-failed0, time.Since(start); n > int(d/time.Second)+1 {
		t.Errorf("%d Failed in %v, want one a second at most", n, d)
	}
	// A loop may have had the last descriptor in hand when another one failed: by now it has a
	// connection.
	if conns < 10 || conns >= 40 {
		t.Fatalf("%d connections with 40 descriptors", conns)
	}
	var served []net.Conn
	for range conns {
		served = append(served, testnet.Await(t, "an answer to a served client", answered))
	}
	select {
	case <-answered:
		t.Error("a client was served without a descriptor")
	default:
	}

	// It is alive, and whoever leaves makes room for one who waits, at once.
	start = time.Now()
	_, failed1, _ = state()
	turns := clients - len(served)
	for left := turns; left > 0; left-- {
		testnet.Ping(t, served[len(served)-1], "alive")
		served[0].Close()
		served = append(served[1:], testnet.Await(t, "the next client's turn", answered))
	}
	if d := time.Since(start); d > time.Duration(turns)*time.Second/2 { // a busy machine takes its time; the back-off is a second
		t.Errorf("%d waiting clients were served within %v, want no back-off between them", turns, d)
	}
	_, failed2, _ := state()
	if n, d := failed2-failed1, time.Since(start); n > int(d/time.Second)+2 {
		t.Errorf("%d Failed in %v, want one a second at most", n, d)
	}
}

const dialExhaustedEnv = "TCPIO_TEST_DIAL_EXHAUSTED"

// TestDialExhaustedChild is the child of TestDialWithoutDescriptors.
func TestDialExhaustedChild(t *testing.T) {
	if os.Getenv(dialExhaustedEnv) == "" {
		t.Skip("the child of another test")
	}
	server := harness.Stream(t, tcpio.ListenerOptions{}, harness.Echo(t))
	l, events := harness.Manual(t, tcpio.ListenerOptions{Network: "none"})
	ask := func() error {
		if _, err := l.DialAsync(tcpio.DialRequest{Address: server.Addr().String()}); err != nil {
			t.Fatal(err)
		}
		for {
			if ev, ok := testnet.Receive(t, "an event", events).(tcpio.Dialed); ok {
				return ev.Err
			}
		}
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	testnet.WaitFor(t, "the server runs", func() bool { return server.Len() == 1 })
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	old := limit
	limit.Cur = 3 // the standard ones, which are open
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	failed := ask()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	again := ask()
	fmt.Printf("dialed %v %v\n", errors.Is(failed, unix.EMFILE), again)
}

func TestDialWithoutDescriptors(t *testing.T) {
	t.Parallel()
	child := testnet.StartChild(t, "TestDialExhaustedChild", dialExhaustedEnv+"=1")
	if line := child.Line("dialed "); line != "true <nil>" {
		t.Errorf("without descriptors: EMFILE %s", line)
	}
}

const proxyExhaustedEnv = "TCPIO_TEST_PROXY_EXHAUSTED"

// TestProxyExhaustedChild is the child of TestAProxyWithoutDescriptors: a proxy whose Preface takes
// a line. It answers each line on its standard input with "processor time in ns, dials that found
// no descriptor, connections and dials, descriptors".
func TestProxyExhaustedChild(t *testing.T) {
	upstream := os.Getenv(proxyExhaustedEnv)
	if upstream == "" {
		t.Skip("the child of another test")
	}
	var without atomic.Int64
	handle := func(ev tcpio.Event) error {
		switch ev := ev.(type) {
		case tcpio.Opened:
			_, err := ev.Conn.Listener().DialAsync(tcpio.DialRequest{Address: upstream, To: ev.Conn})
			return err
		case tcpio.Dialed:
			if ev.Err != nil {
				if errors.Is(ev.Err, unix.EMFILE) {
					without.Add(1)
				}
				ev.To.Abort()
				return nil
			}
			if _, err := ev.To.Relay(ev.Conn, nil); err != nil {
				ev.Conn.Abort()
				ev.To.Abort()
			}
		}
		return nil
	}
	l := harness.Listen(t, tcpio.ListenerOptions{
		NewActor: func(*tcpio.Conn) tcpio.Actor { return tcpio.ActorFunc(handle) },
		Preface: func(_ *tcpio.Conn, head []byte) (int, error) {
			if i := bytes.IndexByte(head, '\n'); i >= 0 {
				return i + 1, nil
			}
			return 0, tcpio.ErrShortPreface
		},
		PrefaceTimeout: 2 * testnet.Limit,
	})
	harness.Start(t, l)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	old := limit
	limit.Cur = 60
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &old)
	fmt.Printf("listening on %s\n", l.Addr())
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		fds := 0
		for fd := range limit.Cur {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
				fds++
			}
		}
		fmt.Printf("state %d %d %d %d\n", testnet.CPU(t), without.Load(), l.Len()+l.Stats().Dialing, fds)
	}
}

// A proxy has no descriptor left for accepting, for dials and for the pipes of relays, at the same
// time. Clients are cut off, or wait; nobody gets wrong bytes, everybody is served in the end, and
// nothing is left.
func TestAProxyWithoutDescriptors(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := io.Copy(c, c); err == nil {
					_ = c.(*net.TCPConn).CloseWrite()
				}
			}()
		}
	}()
	child := testnet.StartChild(t, "TestProxyExhaustedChild", proxyExhaustedEnv+"="+ln.Addr().String())
	addr := child.Line("listening on ")
	state := func() (cpu time.Duration, without, open, fds int) {
		t.Helper()
		child.Say("")
		if _, err := fmt.Sscan(child.Line("state "), &cpu, &without, &open, &fds); err != nil {
			t.Fatal(err)
		}
		return
	}
	_, _, _, before := state()
	want := testnet.Pattern(300 << 10)
	end := time.Now().Add(2 * testnet.Limit)
	var cut atomic.Int64
	try := func() error {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			return err
		}
		defer nc.Close()
		_ = nc.SetDeadline(end)
		if _, err := nc.Write([]byte("head")); err != nil {
			return err
		}
		time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond)
		if _, err := nc.Write([]byte("er\n")); err != nil {
			return err
		}
		written := make(chan error, 1)
		go func() {
			_, err := nc.Write(want)
			if err == nil {
				err = nc.(*net.TCPConn).CloseWrite()
			}
			written <- err
		}()
		got, err := io.ReadAll(nc)
		if err == nil {
			err = <-written // the kernel tells a reset once, and may have told the writer
		}
		if !bytes.Equal(got, want[:len(got)]) {
			t.Errorf("wrong bytes among the first %d", len(got))
		}
		if err == nil && len(got) < len(want) {
			t.Errorf("an end of stream behind %d bytes of %d", len(got), len(want))
		}
		return err
	}
	var all sync.WaitGroup
	for range 60 {
		all.Go(func() {
			for range 3 {
				for {
					err := try()
					if err == nil {
						break
					}
					cut.Add(1)
					if time.Now().After(end) || t.Failed() {
						t.Errorf("a client was never served: %v", err)
						return
					}
					time.Sleep(time.Duration(rand.IntN(50)) * time.Millisecond)
				}
			}
		})
	}
	all.Wait()
	cpu, without, _, _ := state()
	t.Logf("%d times a client was cut off, %d dials without a descriptor, %v of processor time", cut.Load(), without, cpu)
	testnet.WaitFor(t, "nothing is left", func() bool {
		_, _, open, fds := state()
		return open == 0 && fds <= before+2*8 // some pipes are kept for the next relays
	})
}
