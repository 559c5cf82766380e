package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// liveHeap is what is alive in this process, in bytes.
func liveHeap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Declared lengths cost nothing until the bytes are there: a hundred connections that have each
// declared the most that is allowed, and a hundred that declare far more and are refused.
func TestDeclaredLengthsTakeNoMemory(t *testing.T) {
	addr := start(t)
	dial(t, addr).do("PING")
	before := liveHeap()
	var waiting []*peer
	for range 50 {
		for _, in := range []string{"PING\r\n*600000\r\n", "PING\r\n*2\r\n$3\r\nGET\r\n$1048576\r\n"} {
			p := dial(t, addr)
			p.send([]byte(in))
			waiting = append(waiting, p)
		}
		for _, in := range []string{"PING\r\n*2000000000\r\n", "PING\r\n*1\r\n$2000000000\r\n"} {
			p := dial(t, addr)
			p.send([]byte(in))
			p.reply()
			if got := p.reply(); !strings.HasPrefix(got, "-ERR Protocol error: invalid ") {
				t.Errorf("%q", got)
			}
			p.wantEnd()
		}
	}
	for _, p := range waiting {
		if got := p.reply(); got != "+PONG" {
			t.Errorf("%q", got)
		}
	}
	if grown := liveHeap() - before; grown > 8<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
	runtime.KeepAlive(waiting)
}

// A connection that is idle again holds none of the buffers that its requests went through.
func TestIdleConnectionsHoldNoBuffers(t *testing.T) {
	addr := start(t)
	const n, size = 200, 60 << 10
	value := strings.Repeat("x", size)
	dial(t, addr).do("ECHO", value)
	before := liveHeap()
	var idle []net.Conn
	for range n {
		p := dial(t, addr)
		p.do("ECHO", value)
		p.r = nil
		idle = append(idle, p)
	}
	if grown := liveHeap() - before; grown > n*size/4 {
		t.Errorf("%d bytes for each of %d idle connections", grown/n, n)
	}
	runtime.KeepAlive(idle)
}

// A peer that does not read is paused with bounded output, while others are served; when it reads,
// everything comes.
func TestSlowReaderIsPausedAndResumed(t *testing.T) {
	addr := start(t)
	slow, other := dial(t, addr), dial(t, addr)
	value := strings.Repeat("v", maxBulk)
	slow.do("SET", "long", value)
	slow.do("SET", "n", "0")
	before := liveHeap()

	const n = 64
	var requests []byte
	for range n {
		requests = append(requests, encode("GET", "long")...)
		requests = append(requests, encode("INCR", "n")...)
	}
	slow.send(requests)
	eventually(t, "the slow reader is paused", func() bool { _, paused := other.output(slow); return paused })
	executed, err := strconv.Atoi(other.do("GET", "n"))
	if err != nil || executed >= n-1 {
		t.Errorf("%d of %d requests were executed before the pause, %v", executed, n, err)
	}
	// What waits: a queue that took one long reply while it was empty, and a batch.
	if waiting, _ := other.output(slow); waiting > 2*maxBulk+2*flushAt {
		t.Errorf("%d bytes wait", waiting)
	}
	// The sockets' buffers are the kernel's; here there is the reply that is waiting, and the pool.
	if grown := liveHeap() - before; grown > 8*maxBulk {
		t.Errorf("the heap grew by %d bytes", grown)
	}

	for i := range n {
		if got := slow.reply(); got != value {
			t.Fatalf("value %d: %d bytes, the same: %v", i, len(got), got == value)
		}
		if got, want := slow.reply(), fmt.Sprint(":", i+1); got != want {
			t.Fatalf("count %d: %q", i, got)
		}
	}
	if got := slow.do("PING"); got != "+PONG" {
		t.Errorf("behind it all: %q", got)
	}
	if waiting, paused := other.output(slow); waiting != 0 || paused {
		t.Errorf("%d bytes wait, paused: %v", waiting, paused)
	}
}

// A peer that sends for ever and never reads is held back by TCP, and costs nothing when it has
// gone.
func TestPeerThatNeverReadsIsHeldBack(t *testing.T) {
	addr := start(t)
	rude, other := dial(t, addr), dial(t, addr)
	other.do("SET", "long", strings.Repeat("v", maxBulk))
	before := liveHeap()
	paused := func() bool { _, paused := other.output(rude); return paused }
	requests := bytes.Repeat(encode("GET", "long"), 1000)
	sent := 0
	for {
		if err := rude.SetWriteDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, err := rude.Write(requests[sent%len(requests):])
		sent += n
		// That time without room for a byte is the proof, while the server answers others and says that
		// it does not read. If it did, it would take this much in no time.
		if errors.Is(err, os.ErrDeadlineExceeded) && n == 0 && paused() {
			break
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		if sent > 256<<20 {
			t.Fatalf("%d bytes were taken", sent)
		}
		if got := other.do("PING"); got != "+PONG" {
			t.Fatalf("%q", got)
		}
	}
	if grown := liveHeap() - before; grown > 8*maxBulk {
		t.Errorf("the heap grew by %d bytes after %d were sent", grown, sent)
	}
	if err := rude.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	rude.Close() // with a reset, while the server waits for room
	eventually(t, "a peer that reset while paused is forgotten", func() bool {
		return strings.Count(other.do("CLIENT", "LIST"), "\n") == 1
	})
}

// A peer that sends its requests and shuts down its side gets every reply, though it is slow, and
// then the end.
func TestHalfCloseGetsEveryReply(t *testing.T) {
	addr := start(t)
	p, other := dial(t, addr), dial(t, addr)
	value := strings.Repeat("v", maxBulk)
	p.do("SET", "long", value)
	const n = 32
	p.send(append(bytes.Repeat(encode("GET", "long"), n), "PING\r\n*2\r\n$3\r\nGE"...)) // cut off
	if err := p.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the slow reader is paused", func() bool { _, paused := other.output(p); return paused })
	for i := range n {
		if got := p.reply(); got != value {
			t.Fatalf("value %d: %d bytes", i, len(got))
		}
	}
	if got := p.reply(); got != "+PONG" {
		t.Errorf("the last reply is %q", got)
	}
	p.wantEnd()
}

// A command that was run is answered, though the server is told to stop and its peer is slow.
func TestRepliesThatWaitSurviveTheEndOfTheServer(t *testing.T) {
	l, err := listen("127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- serve(ctx, l, newServer(newStore(time.Now), slog.New(slog.DiscardHandler)), nil) }()
	p, other := dial(t, l.Addr().String()), dial(t, l.Addr().String())
	value := strings.Repeat("v", maxBulk)
	other.do("SET", "long", value)
	n := 0
	for paused := false; !paused; n++ {
		run, asked := other.commands(), 0
		p.send(encode("GET", "long"))
		eventually(t, "it is run", func() bool {
			asked++
			return other.commands() == run+asked+1
		})
		_, paused = other.output(p)
	}
	cancel()
	other.wantEnd() // who waits for nothing is closed at once
	other.Close()
	time.Sleep(350 * time.Millisecond) // longer than a connection is left open unless the server asks for it
	for i := range n {
		if got := p.reply(); got != value {
			t.Fatalf("value %d of %d: %d bytes", i, n, len(got))
		}
	}
	p.wantEnd()
	p.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// The last request and the end arrive together, and the reply finds no room: it comes all the same.
func TestLastReplyWaitsForRoom(t *testing.T) {
	addr := start(t)
	const size = 60 << 10 // short of flushAt, so that the server looks for more behind the last request
	value := strings.Repeat("v", size)
	other := dial(t, addr)
	other.do("SET", "k", value)
	var p *peer
	n := 0
	for attempt := 0; ; attempt++ {
		if attempt == 20 {
			t.Fatal("the last reply always found room")
		}
		p, n = dial(t, addr), 1
		p.do("PING")
		for waiting := 0; waiting+size <= writeBuffer; n++ {
			p.send(encode("GET", "k"))
			other.do("PING") // The server had its turn with p.
			waiting, _ = other.output(p)
		}
		// While the server works on this, the request and the end both arrive.
		other.send(encode(append([]string{"EXISTS"}, make([]string, 200_000)...)...))
		p.send(encode("GET", "k"))
		if err := p.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		other.reply()
		if _, paused := other.output(p); paused {
			break
		}
		p.Close()
	}
	for i := range n {
		if got := p.reply(); got != value {
			t.Fatalf("value %d of %d: %d bytes", i, n, len(got))
		}
	}
	p.wantEnd()
}
