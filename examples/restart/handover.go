package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rabbit-backend/tcpio"
)

const (
	firstFD  = 3 // SD_LISTEN_FDS_START
	readyEnv = "RESTART_READY_FD"
	execEnv  = "RESTART_EXEC"
	ready    = "ready\n"
)

// inheritedListener is the socket that another process has passed, nil if there is none. The
// variables that say so are unset: they are not for our children.
func inheritedListener() (net.Listener, error) {
	pid, count := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(name)
	}
	if pid != strconv.Itoa(os.Getpid()) || count == "" {
		return nil, nil // none, or meant for another process, whose variables we have inherited
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 {
		return nil, fmt.Errorf("LISTEN_FDS is %q", count)
	}
	for fd := firstFD; fd < firstFD+n; fd++ {
		syscall.CloseOnExec(fd)
	}
	if n == 0 {
		return nil, nil
	}
	if n != 1 {
		return nil, fmt.Errorf("%d sockets were passed, want one", n)
	}
	f := os.NewFile(firstFD, "LISTEN_FD_3")
	defer f.Close() // FileListener duplicates
	return net.FileListener(f)
}

// tellReady tells the predecessor, if there is one, that the server at addr can be relied on: once
// it has answered a request that came the way of all others.
func tellReady(ctx context.Context, addr net.Addr) error {
	v := os.Getenv(readyEnv)
	if v == "" {
		return nil
	}
	os.Unsetenv(readyEnv)
	fd, err := strconv.Atoi(v)
	if err != nil {
		return err
	}
	syscall.CloseOnExec(fd)
	w := os.NewFile(uintptr(fd), "ready")
	defer w.Close()
	if err := served(ctx, addr); err != nil {
		return err
	}
	if _, err = io.WriteString(w, ready); errors.Is(err, syscall.EPIPE) {
		return nil // it has died meanwhile: all the more reason to serve
	}
	return err
}

// served makes requests, each on a connection of its own, until this process answers one: its
// predecessor has the same socket and may accept first.
func served(ctx context.Context, addr net.Addr) error {
	var d net.Dialer
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, addr.Network(), addr.String())
		},
	}}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://self/", nil)
		if err != nil {
			return err
		}
		if resp, err := client.Do(req); err == nil {
			answer, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if string(answer) == self() {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

// replace starts the executable anew with l's socket and returns it when it has been ready, and has
// served, for trial. Otherwise nothing has changed, and no process is left. Both processes accept
// from the same backlog until one stops, so nobody is refused in between.
func replace(ctx context.Context, l *tcpio.Listener, limit, trial time.Duration) (*os.Process, error) {
	path, err := os.Executable() // where it was started from, whatever is there now
	if err != nil {
		return nil, err
	}
	socket, err := l.File()
	if err != nil {
		return nil, err
	}
	defer socket.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	defer w.Close()

	// LISTEN_PID must be the child's number, which nobody knows before it runs. So the child is this
	// program once more, the old file even if another has taken its place, and becomes the new one
	// when it has set it; see becomeSuccessor.
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{socket, w}
	cmd.Env = append(os.Environ(), "LISTEN_FDS=1", execEnv+"="+path, fmt.Sprint(readyEnv, "=", firstFD+1))
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	w.Close() // so that its end is seen
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }() // ends with either process
	_ = r.SetReadDeadline(time.Now().Add(limit))
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	said := make([]byte, len(ready))
	_, err = io.ReadFull(r, said)
	if err != nil || string(said) != ready {
		_ = cmd.Process.Kill()
		if waitErr := <-exited; waitErr != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			err = waitErr
		}
		return nil, fmt.Errorf("%s did not get ready: %w", path, cmp.Or(err, errNotReady))
	}
	// It has said so, and served one request: a fault that shows with more of them would take the
	// service down.
	t := time.NewTimer(trial)
	defer t.Stop()
	select {
	case <-t.C:
		return cmd.Process, nil
	case err := <-exited:
		return nil, fmt.Errorf("%s got ready and did not last: %w", path, cmp.Or(err, errEnded))
	case <-ctx.Done():
		// Whoever ends this server ends both. What the successor has accepted is answered.
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-exited
		return nil, ctx.Err()
	}
}

var (
	errNotReady = errors.New("it says something else")
	errEnded    = errors.New("exit status 0")
)

// becomeSuccessor is the child's part of replace: it sets LISTEN_PID and runs the executable in
// this same process. Then there is no return.
func becomeSuccessor() error {
	path := os.Getenv(execEnv)
	if path == "" {
		return nil
	}
	env := make([]string, 0, len(os.Environ())+1)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, execEnv+"=") && !strings.HasPrefix(v, "LISTEN_PID=") {
			env = append(env, v)
		}
	}
	env = append(env, "LISTEN_PID="+strconv.Itoa(os.Getpid()))
	return &os.PathError{Op: "exec", Path: path, Err: syscall.Exec(path, os.Args, env)}
}
