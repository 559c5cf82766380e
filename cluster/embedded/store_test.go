package embedded

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

func putter(t *testing.T, nc *nats.Conn) jetstream.KeyValue {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.CreateOrUpdateKeyValue(testnet.Context(t), jetstream.KeyValueConfig{Bucket: "b"})
	if err != nil {
		t.Fatal(err)
	}
	return kv
}

// Nobody takes over from a process that hangs, as it has the store; who waits gives up with ctx.
// Behind a program that has taken the port of a server that is gone, one starts anew.
func TestStoreWhoseServerHangs(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "d")
	owner := startMember(t, dir, "owner", "STORE=1")
	owner.Signal(syscall.SIGSTOP)
	ctx, cancel := context.WithTimeout(testnet.Context(t), 500*time.Millisecond)
	defer cancel()
	if s, err := Open(ctx, &Options{Dir: dir, Store: true}); !errors.Is(err, context.DeadlineExceeded) {
		if err == nil {
			s.Close()
		}
		t.Errorf("Open beside a server that hangs: %v", err)
	}
	owner.Kill()
	addr, err := os.ReadFile(filepath.Join(dir, storeAddr))
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", string(addr))
	if err != nil {
		t.Skipf("SKIPPED: the port was taken meanwhile: %v", err)
	}
	defer ln.Close()
	me := open(t, &Options{Dir: dir, Store: true})
	putter(t, me.Conn())
	other := startMember(t, dir, "other", "STORE=1")
	if got := answers(t, me.Conn(), 1); got != "other" {
		t.Errorf("answers of %q", got)
	}
	other.End()
}

// The process with the server is killed: another takes over, with all that was acknowledged.
func TestStoreOutlivesItsProcess(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "d")
	owner := startMember(t, dir, "owner", "STORE=1")
	other := startMember(t, dir, "other", "STORE=1")
	me := open(t, &Options{Dir: dir, Store: true})
	kv := putter(t, me.Conn())
	if got := answers(t, me.Conn(), 2); len(got) != len("owner other") {
		t.Fatalf("answers of %q", got)
	}
	if _, err := kv.PutString(testnet.Context(t), "k", "before"); err != nil {
		t.Fatal(err)
	}
	// A request that meets the end of the server gets no answer, so each has a limit of its own.
	short := func() context.Context {
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		t.Cleanup(cancel)
		return short
	}
	owner.Kill()
	killed := time.Now()
	if got := answers(t, me.Conn(), 1); got != "other" {
		t.Errorf("answers of %q", got)
	}
	t.Logf("another took over after %v", time.Since(killed))
	var e jetstream.KeyValueEntry
	testnet.WaitFor(t, "what was put before", func() bool {
		var err error
		e, err = kv.Get(short(), "k")
		return err == nil
	})
	if string(e.Value()) != "before" {
		t.Errorf("got %q", e.Value())
	}
	// Now whoever has the server ends in order.
	other.End()
	testnet.WaitFor(t, "what was put before", func() bool {
		e, err := kv.Get(short(), "k")
		return err == nil && string(e.Value()) == "before"
	})
	// And all of them.
	me.Close()
	again := open(t, &Options{Dir: dir, Store: true})
	if e, err := putter(t, again.Conn()).Get(testnet.Context(t), "k"); err != nil || string(e.Value()) != "before" {
		t.Errorf("after all have ended: %v, %v", e, err)
	}
}
