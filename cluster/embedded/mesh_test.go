package embedded

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// What one publishes reaches the others as soon as Open has returned on both sides.
func TestProcessesFindEachOther(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new")
	a, b, c := open(t, &Options{Dir: dir}), open(t, &Options{Dir: dir}), open(t, &Options{Dir: dir})
	for _, from := range []*Server{a, b, c} {
		for _, to := range []*Server{a, b, c} {
			sub, err := to.Conn().SubscribeSync("hello")
			if err != nil {
				t.Fatal(err)
			}
			if err := to.Conn().Flush(); err != nil {
				t.Fatal(err)
			}
			testnet.WaitFor(t, "a message", func() bool {
				if err := from.Conn().Publish("hello", nil); err != nil {
					t.Fatal(err)
				}
				_, err := sub.NextMsg(50 * time.Millisecond)
				return err == nil
			})
			if err := sub.Unsubscribe(); err != nil {
				t.Fatal(err)
			}
		}
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v, want mode 0700", info.Mode(), err)
	}
	for _, name := range []string{"secret", "kind", "lock", "mesh/*"} {
		found, _ := filepath.Glob(filepath.Join(dir, name))
		for _, f := range found {
			if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v, want mode 0600", f, info.Mode(), err)
			}
		}
	}
	c.Close()
	if n := len(files(t, dir)); n != 2 {
		t.Errorf("%d files of processes, want those of the two that are left", n)
	}
}

// A process that was killed leaves its file. The next removes it, whatever process has its port or
// its id meanwhile, and what was half written too.
func TestKilledProcessIsForgotten(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	killed := startMember(t, dir, "killed")
	lives := startMember(t, dir, "lives")
	killed.Kill()
	stale := files(t, dir)
	if len(stale) != 2 {
		t.Fatalf("files %q, want two", stale)
	}
	half := filepath.Join(dir, "mesh", tmp+"123")
	if err := os.WriteFile(half, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	me := open(t, &Options{Dir: dir})
	if got := answers(t, me.Conn(), 1); got != "lives" {
		t.Errorf("answers of %q", got)
	}
	if got := files(t, dir); len(got) != 2 {
		t.Errorf("files %q, want two: this process's, and that of the one that lives", got)
	}
	if _, err := os.Stat(half); err == nil {
		t.Error("the file that was half written is still there")
	}
	lives.End()
}

// The port of a process that has ended may belong to a program of anybody. It gets neither the
// secret nor a route.
func TestImpostorLearnsNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	open(t, &Options{Dir: dir}).Close()
	secret, err := os.ReadFile(filepath.Join(dir, "secret"))
	if err != nil || len(secret) != 2*secretSize {
		t.Fatalf("secret of %d characters, %v", len(secret), err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	// Its file looks alive, as if it had taken the port in the moment between.
	d := &directory{path: dir}
	place, err := d.put("mesh/impostor", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer place.Close()
	cert := testnet.ServerTLS()
	cert.ClientAuth = tls.RequestClientCert
	done := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			done <- err
			return
		}
		defer c.Close()
		// A server that dials awaits TLS's answer, so the impostor tries that.
		err = tls.Server(c, cert).Handshake()
		if err == nil {
			err = errors.New("the handshake succeeded")
		} else {
			err = nil
		}
		done <- err
	}()
	// The impostor's file counts as alive: Open goes on after hungAfter.
	me := open(t, &Options{Dir: dir})
	if err := testnet.Receive(t, "the impostor's answer", done); err != nil {
		t.Error(err)
	}
	// Nor can it dial: it has no certificate that counts.
	addr, err := os.ReadFile(files(t, dir)[0])
	if filepath.Base(files(t, dir)[0]) == "impostor" {
		addr, err = os.ReadFile(files(t, dir)[1])
	}
	if err != nil {
		t.Fatal(err)
	}
	c, err := tls.Dial("tcp", string(addr), &tls.Config{InsecureSkipVerify: true})
	if err == nil {
		// With TLS 1.3 the server's refusal comes with the first read.
		_ = c.SetDeadline(time.Now().Add(testnet.Limit))
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	if err == nil {
		t.Error("a peer without the certificate was served")
	}
	if !me.Conn().IsConnected() {
		t.Error("not connected")
	}
}

// Processes start while others end, a hundred times: those that are left are all connected.
func TestStartWhileAnotherEnds(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "d")
	rounds := 4
	if testnet.Long {
		rounds = 20
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range rounds {
				s, err := Open(testnet.Context(t), &Options{Dir: dir})
				if err != nil {
					t.Error(err)
					return
				}
				time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond) // how long it lives
				s.Close()
			}
		})
	}
	var kept []*Server
	for range 4 {
		s := open(t, &Options{Dir: dir})
		kept = append(kept, s)
		name := fmt.Sprint(len(kept))
		if _, err := s.Conn().Subscribe("who", func(m *nats.Msg) { _ = m.Respond([]byte(name)) }); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	for _, s := range kept {
		answers(t, s.Conn(), len(kept))
	}
	if n := len(files(t, dir)); n != len(kept) {
		t.Errorf("%d files, want %d", n, len(kept))
	}
}

// A process that hangs holds others up for a moment, and is connected with all when it goes on.
func TestHungProcess(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "d")
	hangs := startMember(t, dir, "hangs")
	hangs.Signal(syscall.SIGSTOP)
	start := time.Now()
	me := open(t, &Options{Dir: dir})
	if took := time.Since(start); took < hungAfter || took > hungAfter+10*time.Second {
		t.Errorf("Open took %v beside a process that hangs, want some %v", took, hungAfter)
	}
	hangs.Signal(syscall.SIGCONT)
	if got := answers(t, me.Conn(), 1); got != "hangs" {
		t.Errorf("answers of %q", got)
	}
}

func TestDirectoryIsChecked(t *testing.T) {
	t.Parallel()
	ctx := testnet.Context(t)
	wide := t.TempDir()
	if err := os.Chmod(wide, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(wide, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	damaged := filepath.Join(wide, "damaged")
	if err := errors.Join(os.Mkdir(damaged, 0o700),
		os.WriteFile(filepath.Join(damaged, "secret"), []byte("beef"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for name, dir := range map[string]string{"empty": "", "mode 0755": wide, "a file": file, "damaged secret": damaged} {
		if s, err := Open(ctx, &Options{Dir: dir}); err == nil {
			s.Close()
			t.Errorf("%s: Open succeeded", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
	if _, err := Open(ctx, nil); err == nil {
		t.Error("nil Options: Open succeeded")
	}
	dir := filepath.Join(wide, "mesh")
	open(t, &Options{Dir: dir})
	if s, err := Open(ctx, &Options{Dir: dir, Store: true}); err == nil {
		s.Close()
		t.Error("with and without Store in one directory: Open succeeded")
	}
	// Who cannot get the lock says so when ctx ends.
	f, err := tryLock(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := Open(short, &Options{Dir: dir}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Open with the directory locked: %v, want ctx's error", err)
	}
}
