//go:build linux

package hazards

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

const stepsEnv = "TCPIO_TEST_EXHAUSTED_STEPS"

// TestEveryStepSurvivesExhaustedDescriptors takes the process's last descriptor away before each
// call that needs one: the call says so, leaves nothing behind and may be made again, and what
// needs none goes on. Accepting is TestDescriptorsExhausted's. It runs in a process of its own,
// whose limit nobody else minds.
//
// To see it fail: leave out the Close of f in sys.GiveAway, or of the socket in sys.TakeListener's
// caller.
func TestEveryStepSurvivesExhaustedDescriptors(t *testing.T) {
	if os.Getenv(stepsEnv) == "" {
		ctx, cancel := context.WithTimeout(t.Context(), 4*testnet.Limit)
		defer cancel()
		cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), stepsEnv+"=1", "GOCOVERDIR="+t.TempDir())
		out, err := cmd.CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("\n--- PASS: "+t.Name()+" ")) {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	testnet.ServerTLS() // it may read files
	for _, step := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"Listen", exhaustedListen},
		{"Serve", exhaustedServe},
		{"Adopt", exhaustedAdopt},
		{"GetListener", exhaustedGetListener},
		{"Hijack", exhaustedHijack},
		{"splice", exhaustedSplice},
		{"a connection that waits to be closed", exhaustedMakesRoom},
		{"TLS handshake", exhaustedHandshake},
		{"StartTLS", exhaustedStartTLS},
		{"Shutdown", exhaustedShutdown},
	} {
		t.Run(step.name, func(t *testing.T) {
			before := openDescriptors(t)
			t.Run("", step.run)
			testnet.WaitFor(t, "the same number of descriptors as before", func() bool { return openDescriptors(t) == before })
		})
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	fds, err := testnet.Descriptors()
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// exhaust leaves the process as many descriptors as free says, while f runs.
func exhaust(t *testing.T, free int, f func()) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	limit := old
	limit.Cur = 200
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	var fill []int
	for {
		fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
		if err == unix.EMFILE {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		fill = append(fill, fd)
	}
	for range free {
		unix.Close(fill[len(fill)-1])
		fill = fill[:len(fill)-1]
	}
	defer func() {
		for _, fd := range fill {
			unix.Close(fd)
		}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Fatal(err)
		}
	}()
	f()
}

func wantEMFILE(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, unix.EMFILE) {
		t.Errorf("%v, want EMFILE", err)
	}
}

func exhaustedListen(t *testing.T) {
	exhaust(t, 0, func() {
		_, err := tcpio.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0"})
		wantEMFILE(t, err)
	})
	exhaust(t, 1, func() { // the socket, and no duplicate of it
		_, err := tcpio.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0"})
		wantEMFILE(t, err)
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	exhaust(t, 0, func() {
		_, err := tcpio.Listen(&tcpio.ListenerOptions{Listener: ln})
		wantEMFILE(t, err)
	})
	l, events := harness.Manual(t, tcpio.ListenerOptions{Listener: ln}) // it was left alone
	harness.Open(t, l, events)
}

func exhaustedServe(t *testing.T) {
	for free := range 4 { // of two pollers, with two descriptors each
		l := harness.Listen(t, tcpio.ListenerOptions{Loops: 2, NewActor: func(*tcpio.Conn) tcpio.Actor { return harness.EchoActor }})
		exhaust(t, free, func() {
			wantEMFILE(t, l.Serve(t.Context()))
		})
	}
}

// awaitServing waits until l, which echoes, has all the descriptors that it needs.
func awaitServing(t *testing.T, l *tcpio.Listener) {
	t.Helper()
	peer := testnet.Dial(t, l)
	testnet.Ping(t, peer, "ready?")
	peer.Close()
	testnet.WaitFor(t, "the end of the connection", func() bool { return l.Len() == 0 })
}

func exhaustedAdopt(t *testing.T) {
	l := harness.Stream(t, tcpio.ListenerOptions{}, harness.Echo(t))
	awaitServing(t, l)
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	peer, err := net.Dial("tcp", other.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	peer.SetDeadline(time.Now().Add(testnet.Limit))
	nc, err := other.Accept()
	if err != nil {
		t.Fatal(err)
	}
	exhaust(t, 0, func() {
		_, err := l.Adopt(nc)
		wantEMFILE(t, err)
		if n := l.Len(); n != 0 {
			t.Errorf("%d connections", n)
		}
	})
	testnet.Send(t, nc, "still mine")
	testnet.ExpectBytes(t, peer, "still mine")
	if _, err := l.Adopt(nc); err != nil {
		t.Fatal(err)
	}
	testnet.Ping(t, peer, "yours now")
}

func exhaustedGetListener(t *testing.T) {
	l := harness.Stream(t, tcpio.ListenerOptions{}, harness.Echo(t))
	awaitServing(t, l)
	for free := range 2 {
		exhaust(t, free, func() {
			if ln := l.GetListener(); ln != nil {
				t.Errorf("with %d descriptors: %v", free, ln)
			}
		})
	}
	testnet.Ping(t, testnet.Dial(t, l), "goes on")
	if ln := l.GetListener(); ln == nil || ln.Addr().String() != l.Addr().String() {
		t.Errorf("GetListener is %v", ln)
	}
}

func exhaustedHijack(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	for free := range 2 {
		exhaust(t, free, func() {
			_, err := c.Hijack()
			wantEMFILE(t, err)
			// The connection is what it was.
			testnet.Send(t, peer, "question")
			if got, err := harness.ReadStream(t, events, c, 8, 8); err != nil || string(got) != "question" {
				t.Errorf("read %q, %v", got, err)
			}
			if _, err := c.TryWrite([]byte("answer")); err != nil {
				t.Error(err)
			}
			testnet.ExpectBytes(t, peer, "answer")
		})
	}
	tc, err := c.Hijack()
	if err != nil {
		t.Fatal(err)
	}
	defer tc.Close()
	testnet.Send(t, tc, "mine")
	testnet.ExpectBytes(t, peer, "mine")
	for {
		if _, ok := testnet.Await(t, "Closed", events).(tcpio.Closed); ok {
			return
		}
	}
}

func exhaustedSplice(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	from, fromPeer := harness.Open(t, l, events)
	to, toPeer := harness.Open(t, l, events)
	want := testnet.Pattern(2 << 20) // bulk
	go func() {
		_, _ = fromPeer.Write(want)
		_ = fromPeer.(*net.TCPConn).CloseWrite()
	}()
	exhaust(t, 1, func() { // a pipe has two
		copied := make(chan error, 1)
		go func() {
			_, err := io.Copy(to, from)
			copied <- err
		}()
		testnet.ExpectBytes(t, toPeer, want)
		if err := testnet.Await(t, "the end of Copy", copied); err != nil {
			t.Errorf("Copy without a pipe: %v", err)
		}
	})
	if _, err := to.TryWrite([]byte("mine")); err != nil {
		t.Error(err)
	}
	testnet.ExpectBytes(t, toPeer, "mine")
	l.Close()
}

// A connection whose peer has ended, and that nobody closes, makes room for another.
func exhaustedMakesRoom(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	testnet.FIN(t, peer)
	if _, err := harness.ReadStream(t, events, c, -1, 100); err != io.EOF {
		t.Fatal(err)
	}
	exhaust(t, 1, func() { // for the next peer's own socket
		next := testnet.Dial(t, l)
		if closed := harness.Expect[tcpio.Closed](t, events).Conn; closed != c || c.Err() != nil {
			t.Errorf("closed %v, %v", closed.ID(), closed.Err())
		}
		for opened := false; !opened; { // a Failed may say that now there is no descriptor for yet another
			_, opened = testnet.Await(t, "Opened", events).(tcpio.Opened)
		}
		next.Close()
	})
	l.Close()
}

func exhaustedHandshake(t *testing.T) {
	l, _ := harness.TLS(t, tcpio.ListenerOptions{}, harness.EchoActor)
	warm := testnet.DialTLS(t, l, testnet.ClientTLS())
	testnet.Ping(t, warm, "warm")
	peer := testnet.Dial(t, l)
	testnet.WaitFor(t, "it is accepted", func() bool { return l.Len() == 2 })
	exhaust(t, 0, func() {
		c := tls.Client(peer, testnet.ClientTLS())
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		testnet.Ping(t, c, "handshakes need no descriptor")
		testnet.Ping(t, warm, "nor does what goes on")
	})
}

func exhaustedStartTLS(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	exhaust(t, 0, func() {
		if err := c.StartTLS(testnet.ServerTLS()); err != nil {
			t.Fatal(err)
		}
		tc := tls.Client(peer, testnet.ClientTLS())
		if err := tc.Handshake(); err != nil {
			t.Fatal(err)
		}
		testnet.Send(t, tc, "secret")
		if got, err := harness.ReadStream(t, events, c, 6, 100); err != nil || string(got) != "secret" {
			t.Errorf("read %q, %v", got, err)
		}
	})
}

func exhaustedShutdown(t *testing.T) {
	l := harness.Listen(t, tcpio.ListenerOptions{})
	handle := harness.Echo(t)
	events := l.Events()
	consumed := make(chan struct{})
	go func() {
		defer close(consumed)
		for ev := range events {
			handle(ev)
		}
	}()
	served := harness.Go(t.Context(), l)
	peer := testnet.Dial(t, l)
	testnet.Ping(t, peer, "there")
	exhaust(t, 0, func() {
		ctx, cancel := context.WithTimeout(t.Context(), testnet.Limit)
		defer cancel()
		end := make(chan error, 1)
		go func() { end <- l.Shutdown(ctx) }()
		testnet.ExpectEOF(t, peer)
		peer.Close()
		if err := testnet.Await(t, "the end of Shutdown", end); err != nil {
			t.Error(err)
		}
		if err := testnet.Await(t, "the end of Serve", served); err != nil {
			t.Error(err)
		}
	})
	testnet.Await(t, "the end of the consumer", consumed)
}
