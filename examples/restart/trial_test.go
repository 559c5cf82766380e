//go:build linux

// One file, over 500 lines: a single program seen from outside, with the scaffolding that all of
// its tests share.

package main

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// put replaces a program by a shell script.
func put(t *testing.T, bin, script string) {
	t.Helper()
	err := errors.Join(os.WriteFile(bin+".new", []byte("#!/bin/sh\n"+script), 0o700), os.Rename(bin+".new", bin))
	if err != nil {
		t.Fatal(err)
	}
}

// Ready is not enough: the server stays until its successor has lasted, and meanwhile and
// afterwards no request fails. To see it fail: return from replace at ready.
func TestASuccessorThatSaysReadyAndDiesChangesNothing(t *testing.T) {
	const sayReady = "echo ready >&$RESTART_READY_FD\n"
	bin := build(t, "1")
	s := start(t, exec.Command(bin, "-addr", "127.0.0.1:0", "-trial", "2s", "-ready-timeout", "5s", "-grace", "50s", "-drain-timeout", "60s"))
	l := &load{t: t, by: make(map[int]int)}
	l.run(2, client{addr: s.now.addr})
	l.run(2, client{addr: s.now.addr, once: true})
	l.run(2, client{addr: s.now.addr, query: "?pause=20ms"})
	l.run(2, client{addr: s.now.addr, query: "?pause=20ms", once: true})
	for i, script := range []string{
		sayReady + "exit 1\n",
		sayReady,
		sayReady + "sleep 0.2\nkill -9 $$\n",
		"exec sleep 1000\n", // never says ready
		"echo hello >&$RESTART_READY_FD\nexec sleep 1000\n",
	} {
		put(t, bin, script)
		s.signal(syscall.SIGHUP)
		waitFor(t, "the server says that it failed", func() bool { return s.stderr.count("restart failed, going on") == i+1 })
		if left := children(s.now.pid); left != nil {
			t.Errorf("%d: processes %v are left", i, left)
		}
		have := l.answers(s.now.pid)
		waitFor(t, "a hundred answers more", func() bool { return l.answers(s.now.pid) >= have+100 })
	}
	if err := os.Rename(build(t, "2"), bin); err != nil {
		t.Fatal(err)
	}
	before := s.succeed()
	if err := syscall.Kill(before.pid, syscall.SIGHUP); err != nil { // a second one, during the trial, is for the successor
		t.Fatal(err)
	}
	second := s.now
	s.now = s.next()
	s.ended(before)
	s.ended(second)
	waitFor(t, "a hundred answers of the last one", func() bool { return l.answers(s.now.pid) >= 100 })
	l.stop.Store(true)
	l.wg.Wait()
	s.end()
	if l.failed > 0 || second.version != "2" || s.now.version != "2" {
		t.Errorf("%d requests failed; %v, then %v", l.failed, second, s.now)
	}
}

// Whoever ends a server during the trial ends both.
func TestTheEndDuringTheTrialEndsBoth(t *testing.T) {
	s := start(t, exec.Command(build(t, "1"), "-addr", "127.0.0.1:0", "-trial", "60s", "-grace", "1ms"))
	s.signal(syscall.SIGHUP)
	s.next()
	s.end() // no process is left, see start
}

// A successor that hangs is ended, when its time is over or the server's own end comes first.
func TestASuccessorThatHangsIsEnded(t *testing.T) {
	for _, timeout := range []string{"100ms", "60s"} {
		t.Run(timeout, func(t *testing.T) {
			bin := build(t, "1")
			s := start(t, exec.Command(bin, "-addr", "127.0.0.1:0", "-trial", "50ms", "-ready-timeout", timeout, "-grace", "1ms"))
			script := filepath.Join(t.TempDir(), "script")
			err := errors.Join(os.WriteFile(script, []byte("#!/bin/sh\nexec sleep 1000\n"), 0o700), os.Rename(script, bin))
			if err != nil {
				t.Fatal(err)
			}
			s.signal(syscall.SIGHUP)
			if timeout == "60s" {
				waitFor(t, "there is a successor", func() bool { return children(s.now.pid) != nil })
			} else {
				waitFor(t, "the server says that it failed", func() bool { return s.stderr.count("restart failed, going on") == 1 })
				c := &client{addr: s.now.addr, once: true}
				if g, err := c.get(); err != nil || g.pid != s.now.pid {
					t.Errorf("process %d answers, want %d; %v", g.pid, s.now.pid, err)
				}
				if left := children(s.now.pid); left != nil {
					t.Errorf("processes %v are left", left)
				}
			}
			s.end()
		})
	}
}

// As systemd starts it: the socket is descriptor 3, LISTEN_PID the number of the process.
func TestTheServerRunsUnderSocketActivation(t *testing.T) {
	bin := build(t, "1")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	socket, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	activate := func(pid, fds string) *exec.Cmd {
		cmd := exec.Command("/bin/sh", "-c", "export LISTEN_PID="+pid+" LISTEN_FDS="+fds+`; exec "$0" -addr 127.0.0.1:0 -trial 50ms -grace 1ms`, bin)
		cmd.ExtraFiles = []*os.File{socket}
		return cmd
	}
	t.Run("the socket is used, and passed on", func(t *testing.T) {
		s := start(t, activate("$$", "1"))
		for range 2 {
			if s.now.addr != ln.Addr().String() {
				t.Errorf("the server listens on %s, want %s", s.now.addr, ln.Addr())
			}
			c := &client{addr: ln.Addr().String(), once: true}
			if g, err := c.get(); err != nil || g.pid != s.now.pid {
				t.Errorf("process %d answers, want %d; %v", g.pid, s.now.pid, err)
			}
			s.ended(s.succeed())
		}
		s.end()
	})
	t.Run("another process's socket is left alone", func(t *testing.T) {
		s := start(t, activate("1", "1"))
		if s.now.addr == ln.Addr().String() {
			t.Error("the server took it")
		}
		s.end()
	})
	for _, fds := range []string{"2", "-1", "many"} {
		t.Run("LISTEN_FDS="+fds, func(t *testing.T) {
			out, err := activate("$$", fds).CombinedOutput()
			if err == nil || !strings.Contains(string(out), "restart: ") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
