package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// lines counts what is logged.
type lines struct {
	slog.Handler
	n int
}

func (l *lines) Enabled(context.Context, slog.Level) bool  { return true }
func (l *lines) Handle(context.Context, slog.Record) error { l.n++; return nil }

func TestACommandOutOfABrowsersPOSTIsNotRun(t *testing.T) {
	addr := start(t)
	for _, request := range []string{
		"POST / HTTP/1.1\r\nHost: x\r\n\r\n", "post / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"PUT / HTTP/1.1\r\nUser-Agent: y\r\nhOsT: x\r\n\r\n", string(encode("Post")), string(encode("HOST:")), "multi\r\nPOST\r\n",
	} {
		p := dial(t, addr)
		p.send([]byte(request + "SET owned 1\r\nEXEC\r\n"))
		p.wantEnd()
		if got := dial(t, addr).do("DBSIZE"); got != ":0" {
			t.Errorf("behind %q the database has %s", request, got)
		}
	}
}

func TestBrowsersAreLoggedOnceAMinute(t *testing.T) {
	var clock fakeClock
	log := new(lines)
	s := newServer(newStore(clock.now), slog.New(log))
	l, err := listen("127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- serve(ctx, l, s, nil) }()
	for range 4 {
		p := dial(t, l.Addr().String())
		p.send([]byte("POST / HTTP/1.1\r\n"))
		p.wantEnd()
		p.Close()
		clock.advance(20 * time.Second)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if log.n != 2 {
		t.Errorf("%d lines in 80 seconds, want 2", log.n)
	}
}

func TestATransactionIsBounded(t *testing.T) {
	addr := start(t)
	for name, request := range map[string][]byte{
		"requests": encode("INCR", "n"),
		"bytes":    encode("SET", "k", strings.Repeat("v", maxBulk)),
	} {
		p := dial(t, addr)
		p.do("MULTI")
		n := min(maxTransaction, maxQueue/len(request))
		sent := make(chan error, 1)
		go func() {
			_, err := p.Write(append(bytes.Repeat(request, n+1), "PING\r\nEXEC\r\nGET n\r\n"...))
			sent <- err
		}()
		for i := range n {
			if got := p.reply(); got != "+QUEUED" {
				t.Fatalf("%s: %d of %d: %q", name, i, n, got)
			}
		}
		for _, want := range []string{"-" + string(errBigQueue), "+QUEUED", "-" + string(errAborted), "nil"} {
			if got := p.reply(); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
	}
}

// The reply to EXEC is bounded; what changes the data is run all the same.
func TestTheReplyToExecIsBounded(t *testing.T) {
	p := dial(t, start(t))
	p.do("SET", "long", strings.Repeat("v", maxBulk))
	for _, request := range []string{"MULTI", "INCR n", "GET long", "GET long", "GET long", "GET long", "GET long", "PING", "INCR n", "TTL n"} {
		p.send([]byte(request + "\r\n"))
		p.reply()
	}
	want := "[:1" + strings.Repeat(" "+strings.Repeat("v", maxBulk), 3) + strings.Repeat(" -"+string(errBigReply), 3) + " :2 :-1]"
	if got := p.do("EXEC"); got != want {
		t.Errorf("%d bytes, want %d; it ends in %q", len(got), len(want), got[max(0, len(got)-200):])
	}
}

func TestWatchedKeysAreBoundedAndForgotten(t *testing.T) {
	s := newStore(time.Now)
	a, b := new(watch), new(watch)
	for i := range 100 {
		key := fmt.Appendf(nil, "k%d", i%10)
		s.watch(a, key)
		s.watch(b, key)
	}
	if len(a.keys) != 10 || len(s.watched) != 10 || a.size != 10*(2+watchOverhead) {
		t.Errorf("%d keys, %d in the store, %d bytes; each was to be kept once", len(a.keys), len(s.watched), a.size)
	}
	s.unwatch(a)
	s.put([]byte("k3"), []byte("x"))
	if a.dirty || !b.dirty || len(s.watched) != 9 {
		t.Errorf("a is told %v, b %v, %d keys are watched", a.dirty, b.dirty, len(s.watched))
	}
	s.unwatch(b)
	if len(s.watched) != 0 {
		t.Errorf("%d keys are still watched", len(s.watched))
	}

	p := dial(t, start(t))
	args := []string{"WATCH"}
	for i := range maxWatched/watchOverhead + 1 {
		args = append(args, fmt.Sprint(i))
	}
	if got := p.do(args...); got != "-"+string(errManyWatched) {
		t.Errorf("%q", got)
	}
	if got := p.do("WATCH", strings.Repeat("k", maxWatched)); got != "-"+string(errManyWatched) {
		t.Errorf("%q", got)
	}
}

// A key that runs out behind WATCH has changed, one that had run out before has not.
func TestAKeyThatRunsOutHasChanged(t *testing.T) {
	var clock fakeClock
	p := dial(t, startWith(t, clock.now, nil))
	p.do("SET", "k", "1", "PX", "10")
	p.do("WATCH", "k")
	clock.advance(10 * time.Millisecond)
	p.do("MULTI")
	if got := p.do("EXEC"); got != "nil" {
		t.Errorf("ran out behind WATCH: %q", got)
	}
	p.do("SET", "k", "1", "PX", "10")
	clock.advance(10 * time.Millisecond)
	p.do("WATCH", "k")
	p.do("MULTI")
	if got := p.do("EXEC"); got != "[]" {
		t.Errorf("ran out before WATCH: %q", got)
	}
}
