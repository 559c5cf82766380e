//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// first is the first word of an answer: the upstream's name.
func first(s string) string {
	name, _, _ := strings.Cut(s, " ")
	return name
}

// once connects, asks, closes, and returns the name of the upstream that has answered.
func (s *served) once(listener string) string {
	s.t.Helper()
	c := s.dial(listener)
	defer c.Close()
	return first(c.ask("hello"))
}

// refused connects and wants a reset.
func (s *served) refused(listener string) {
	s.t.Helper()
	c, err := net.Dial("tcp", s.addrs[listener])
	if err == nil { // the reset may come while the client still connects
		_ = c.SetDeadline(time.Now().Add(patience))
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		s.t.Errorf("the client's error is %v, want a reset", err)
	}
}

func TestConnectionsGoToEachUpstreamInItsTurn(t *testing.T) {
	bs := named(t, "a", "b", "c")
	s := start(t, onePool(bs, ""))
	count := make(map[string]int)
	for i := range 9 {
		c := s.dial("main")
		if got := c.ask(fmt.Sprint("hello ", i)); !strings.HasSuffix(got, fmt.Sprint(" hello ", i)) {
			t.Errorf("the answer is %q", got)
		} else {
			count[first(got)]++
		}
	}
	if count["a"] != 3 || count["b"] != 3 || count["c"] != 3 {
		t.Error(count)
	}
}

func TestEveryByteArrivesBothWaysAtOnce(t *testing.T) {
	echo := newBackend(t, "echo", "", func(_ *backend, c net.Conn) {
		_, _ = io.Copy(c, c)
		_ = c.(*net.TCPConn).CloseWrite()
	})
	s := start(t, onePool([]*backend{echo}, ""))
	var wg sync.WaitGroup
	for i := range 4 {
		sent := make([]byte, 3<<20+i)
		rand.NewChaCha8([32]byte{byte(i)}).Read(sent)
		c := s.dial("main")
		wg.Go(func() {
			if _, err := c.Write(sent); err != nil {
				t.Error(err)
			}
			_ = c.CloseWrite()
		})
		wg.Go(func() {
			if got, err := io.ReadAll(c.in); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%d bytes of %d, %v", len(got), len(sent), err)
			}
		})
	}
	wg.Wait()
	s.when("the orderly end", func(st *status) bool { return st.ends()["done"] == 4 })
	s.when("all bytes are counted", func(st *status) bool {
		u := st.find(t, echo.addr())
		return u.BytesUp == u.BytesDown && u.BytesUp == 4*3<<20+6
	})
}

func TestAResetIsPassedOnAsAReset(t *testing.T) {
	bs := named(t, "a")
	s := start(t, onePool(bs, ""))
	c := s.dial("main")
	c.ask("hello")
	bs[0].stop()
	c.expectReset()
	s.when("the count", func(st *status) bool { return st.ends()["upstream_failed"] == 1 })

	reset := make(chan error, 1)
	b := newBackend(t, "b", "", func(_ *backend, c net.Conn) {
		_, err := io.Copy(io.Discard, c)
		reset <- err
	})
	s.reload(onePool([]*backend{b}, "    health: {interval: -1s}\n"))
	c = s.dial("main")
	if _, err := c.Write([]byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	s.when("the connection", func(st *status) bool { return st.find(t, b.addr()).BytesUp == 6 })
	_ = c.SetLinger(0)
	c.Close()
	select {
	case err := <-reset:
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the upstream sees %v, want a reset", err)
		}
	case <-time.After(patience):
		t.Error("the upstream sees nothing")
	}
	s.when("the count", func(st *status) bool { return st.ends()["client_failed"] == 1 })
}

// closed is an address where nobody listens.
func closed(t *testing.T) *backend {
	b := newBackend(t, "closed", "", answer)
	b.stop()
	return b
}

func TestADeadUpstreamCostsClientsNothing(t *testing.T) {
	bs := append(named(t, "a"), closed(t))
	s := start(t, onePool(bs, "    health: {interval: -1s}\n    eject: {for: 1h, max: 1h}\n"))
	for range 10 {
		if got := s.once("main"); got != "a" {
			t.Errorf("the answer is %s's", got)
		}
	}
	st := s.status()
	if u := st.find(t, bs[1].addr()); u.Ejections != 1 || u.Failures != 3 || u.State != "ejected" || !strings.Contains(u.Why, "refused") {
		t.Errorf("%+v", u)
	}
	if st.Pools[0].Retries != 3 {
		t.Errorf("%+v", st.Pools[0].poolCounts)
	}
}

func TestWithoutAnUpstreamAClientIsReset(t *testing.T) {
	s := start(t, onePool([]*backend{closed(t), closed(t)}, "    health: {interval: -1s}\n"))
	for range 3 {
		s.refused("main")
	}
	s.when("the count", func(st *status) bool { return st.ends()["refused"] == 3 })
}

// A place in the backlog is no answer: the kernel drops what comes once the backlog is full.
func TestAnUpstreamThatDoesNotAnswerIsGivenUp(t *testing.T) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	silent := fmt.Sprintf("127.0.0.1:%d", sa.(*syscall.SockaddrInet4).Port)
	for { // fill it
		c, err := net.DialTimeout("tcp", silent, 200*time.Millisecond)
		if err != nil {
			break
		}
		defer c.Close()
	}
	a := named(t, "a")[0]
	s := start(t, fmt.Sprintf(`
listeners: {main: {listen: '127.0.0.1:0', to: main}}
pools:
  main:
    connect_timeout: 2s
    health: {interval: -1s}
    eject: {failures: 1, for: 1h, max: 1h}
    upstreams: [{addr: '%s'}, {addr: '%s'}]
`, silent, a.addr()))
	for range 4 {
		if got := s.once("main"); got != "a" {
			t.Errorf("the answer is %s's", got)
		}
	}
	if u := s.status().find(t, silent); u.Failures == 0 {
		t.Errorf("%+v", u)
	}
}

// oneAtATime is a file for clients that wait for a place at a.
func oneAtATime(a *backend, wait string) string {
	return fmt.Sprintf("listeners: {main: {listen: '127.0.0.1:0', to: main}}\npools: {main: {%s, upstreams: [{addr: '%s', max_conns: 1}]}}\n", wait, a.addr())
}

func TestALimitHasClientsWaitAndThenGoOn(t *testing.T) {
	a := named(t, "a")[0]
	s := start(t, oneAtATime(a, "queue: 2, queue_timeout: 1h"))
	c := s.dial("main")
	c.ask("hello")
	var rest []*client
	for n := range 2 {
		rest = append(rest, s.dial("main"))
		s.when("waiting", func(st *status) bool { return st.Pools[0].Waiting == n+1 })
	}
	s.refused("main") // the queue is full
	for _, next := range rest {
		if st := s.status().find(t, a.addr()); st.Conns != 1 {
			t.Errorf("%d connections at once", st.Conns)
		}
		c.Close()
		if got := next.ask("hello"); got != "a hello" {
			t.Error(got)
		}
		c = next
	}
	if st := s.status().Pools[0]; st.Queued != 2 || st.QueueFull != 1 || st.QueueLate != 0 || st.Waiting != 0 {
		t.Errorf("%+v", st.poolCounts)
	}
}

// The next gets the place in the queue of one that has gone.
func TestAClientThatResetsLeavesTheQueue(t *testing.T) {
	a := named(t, "a")[0]
	s := start(t, oneAtATime(a, "queue: 1, queue_timeout: 1h"))
	c := s.dial("main")
	c.ask("hello")
	for range 3 {
		gone := s.dial("main")
		s.when("waiting", func(st *status) bool { return st.Pools[0].Waiting == 1 })
		testnet.RST(t, gone.TCPConn)
		s.when("gone", func(st *status) bool { return st.Pools[0].Waiting == 0 })
	}
	last := s.dial("main")
	s.when("waiting", func(st *status) bool { return st.Pools[0].Waiting == 1 })
	c.Close()
	if got := last.ask("hello"); got != "a hello" {
		t.Error(got)
	}
}

func TestWaitingHasAnEnd(t *testing.T) {
	a := named(t, "a")[0]
	s := start(t, oneAtATime(a, "queue_timeout: 50ms"))
	c := s.dial("main")
	c.ask("hello")
	s.refused("main")
	if st := s.status().Pools[0]; st.QueueLate != 1 || st.Waiting != 0 {
		t.Errorf("%+v", st.poolCounts)
	}
	c.ask("still here")
}

func TestMaxConnsRefusesMore(t *testing.T) {
	bs := named(t, "a")
	s := start(t, strings.Replace(onePool(bs, ""), "to: main}", "to: main, max_conns: 2}", 1))
	one, two := s.dial("main"), s.dial("main")
	one.ask("hello")
	two.ask("hello")
	over := s.dial("main")
	if p, err := io.ReadAll(over); len(p) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes, %v; want an end", len(p), err)
	}
	one.Close()
	s.when("room", func(st *status) bool { return st.Listeners[0].Open == 1 })
	s.dial("main").ask("hello")
	if l := s.status().Listeners[0]; l.Refused != 1 || l.Accepted != 3 {
		t.Errorf("%+v", l)
	}
}

func TestAnIdlePairIsEnded(t *testing.T) {
	bs := named(t, "a")
	const limit = 300 * time.Millisecond
	s := start(t, strings.Replace(onePool(bs, ""), "to: main}", fmt.Sprintf("to: main, idle_timeout: %v}", limit), 1))
	tries := uint64(1)
	for end := time.Now().Add(patience); !talks(t, s.dial("main"), 5, limit/3, limit); tries++ {
		if time.Now().After(end) {
			t.Fatal("this machine stands still all the time")
		}
	}
	s.when("the count", func(st *status) bool { return st.ends()["idle"] == tries })
}

// talks asks so many times, with a pause before each, and then wants a reset. It reports false when
// there was a reset before that, and nothing had moved for as long as limit: the machine stood still.
func talks(t *testing.T, c *client, questions int, pause, limit time.Duration) bool {
	t.Helper()
	last := time.Now()
	for range questions {
		time.Sleep(pause)
		begun := time.Now()
		_, err := io.WriteString(c, "hello\n")
		if err == nil {
			_, err = c.in.ReadString('\n')
		}
		switch {
		case err != nil && time.Since(last) >= limit:
			return false
		case err != nil:
			t.Fatalf("%v after the last question: %v", time.Since(last), err)
		}
		last = begun
	}
	c.expectReset()
	return true
}

func TestADownedUpstreamMovesItsTraffic(t *testing.T) {
	bs := named(t, "a", "b")
	s := start(t, onePool(bs, "    when_down: reset\n    health: {interval: 50ms, timeout: 5s, fall: 2, rise: 1, send: \"ping\\n\", expect: \"a ping\"}\n"))
	s.when("b is down: its answer is not what is expected", func(st *status) bool {
		u := st.find(t, bs[1].addr())
		return u.State == "down" && strings.Contains(u.Why, "the answer begins with")
	})
	c := s.dial("main")
	if got := c.ask("hello"); got != "a hello" {
		t.Error(got)
	}
	addr := bs[0].addr()
	bs[0].ln.Close() // connections go on; checks fail
	c.expectReset()
	s.when("the count", func(st *status) bool { return st.find(t, addr).Resets == 1 && st.ends()["cut"] == 1 })
	again := newBackend(t, "a", addr, answer)
	s.when("a is up again", func(st *status) bool { return st.find(t, addr).State == "up" })
	if got := s.dial("main").ask("hello"); got != "a hello" || again.accepted() == 0 {
		t.Error(got)
	}
}
