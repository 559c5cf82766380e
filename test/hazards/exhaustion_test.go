//go:build linux

package hazards

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
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
	_, _, conns := state()
	if conns < 10 || conns >= 40 {
		t.Fatalf("%d connections with 40 descriptors", conns)
	}
	var served []net.Conn
	for range conns {
		served = append(served, testnet.Await(t, "an answer to a served client", answered))
	}

	// It idles meanwhile: neither processor time nor a flood of Failed.
	const window = 2 * time.Second
	cpu0, failed0, _ := state()
	<-time.After(window)
	cpu1, failed1, _ := state()
	if used := cpu1 - cpu0; used > window/5 {
		t.Errorf("%v of processor time in %v of exhaustion", used, window)
	}
	if n := failed1 - failed0; n > int(window/time.Second)+1 {
		t.Errorf("%d Failed in %v, want one a second at most", n, window)
	}
	select {
	case <-answered:
		t.Error("a client was served without a descriptor")
	default:
	}

	// It is alive, and whoever leaves makes room for one who waits, at once.
	start := time.Now()
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
