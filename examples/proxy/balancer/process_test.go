//go:build linux && long

package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// need skips the test where a program is missing.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("SKIPPED: %s is not installed, and this was not tried with it", p)
		}
	}
}

// A process is an upstream of another make. It may be killed, stopped and started.
type process struct {
	t    *testing.T
	addr string
	make func() *exec.Cmd
	said safeBuffer

	pid  int           // 0: it does not run
	done chan struct{} // closed when it has ended
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// launch starts a process on addr, which ends with the test.
func launch(t *testing.T, addr string, command func() *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, addr: addr, make: command}
	p.start()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("%s said:\n%s", addr, p.said.String())
		}
	})
	return p
}

// start starts it, and waits until it takes connections. One that ends at once is started again:
// what is left of a server that was killed may keep it out for a moment.
func (p *process) start() {
	p.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if p.pid != 0 {
			select {
			case <-p.done:
				p.pid = 0
			default:
			}
		}
		if p.pid == 0 {
			p.begin()
		}
		if c, err := net.DialTimeout("tcp", p.addr, time.Second); err == nil {
			c.Close()
			return
		}
	}
	p.t.Fatalf("it does not listen:\n%s", p.said.String())
}

func (p *process) begin() {
	p.t.Helper()
	cmd, done := p.make(), make(chan struct{})
	cmd.Stdout, cmd.Stderr = &p.said, &p.said
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.pid, p.done = cmd.Process.Pid, done
	go func() {
		defer close(done)
		_ = cmd.Wait()
	}()
}

// signal goes to it and to its children.
func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := syscall.Kill(-p.pid, s); err != nil {
		p.t.Fatal(err)
	}
}

// end sends it, without its children, a signal at which it ends, and waits for that.
func (p *process) end(s syscall.Signal) {
	_ = syscall.Kill(p.pid, s)
	<-p.done
	p.pid = 0
}

func (p *process) kill() {
	if p.pid != 0 {
		_ = syscall.Kill(-p.pid, syscall.SIGKILL)
		p.end(syscall.SIGKILL)
	}
}

func portOf(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}

// output runs a program to its end.
func output(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(name, args...)
	kill := time.AfterFunc(2*patience, func() { _ = cmd.Process.Kill() })
	defer kill.Stop()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// nginx serves a folder. It is one process, so that a signal reaches all of it.
func nginx(t *testing.T, folder string) *process {
	addr, home := testnet.FreeAddr(t), t.TempDir()
	conf := filepath.Join(home, "nginx.conf")
	text := fmt.Sprintf(`
daemon off; master_process off; pid %[1]s/pid; error_log stderr;
events { worker_connections 1024; }
http {
  access_log off; sendfile on; keepalive_requests 1000000; default_type application/octet-stream;
  client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
  server { listen %[2]s backlog=1024; root %[3]s; }
}`, home, addr, folder)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return launch(t, addr, func() *exec.Cmd { return exec.Command("nginx", "-e", "stderr", "-p", home, "-c", conf) })
}

func redis(t *testing.T) *process {
	addr, home := testnet.FreeAddr(t), t.TempDir()
	return launch(t, addr, func() *exec.Cmd {
		return exec.Command("redis-server", "--port", portOf(addr), "--bind", testnet.Host(), "--save", "", "--appendonly", "no", "--dir", home)
	})
}

// postgres starts servers with a database for pgbench each.
func postgres(t *testing.T, n int) (servers []*process) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		t.Skip("SKIPPED: postgresql is not installed, and this was not tried with it")
	}
	need(t, "pgbench", "psql", "cp")
	bin := filepath.Dir(found[len(found)-1])
	var as *syscall.Credential
	if os.Getuid() == 0 { // the server refuses to run as root
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Skip("SKIPPED: there is no user postgres, and this was not tried")
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		as = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	home, err := os.MkdirTemp("", "balancer-postgres") // not t.TempDir, which others may not enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	if as != nil {
		if err := os.Chown(home, int(as.Uid), int(as.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	command := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(name, args...)
		cmd.Dir = home
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
		return cmd
	}
	do := func(name string, args ...string) {
		t.Helper()
		if out, err := command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	run := func(data string) *process {
		addr := testnet.FreeAddr(t)
		return launch(t, addr, func() *exec.Cmd {
			return command(filepath.Join(bin, "postgres"), "-D", data, "-p", portOf(addr), "-c", "listen_addresses="+testnet.Host(),
				"-c", "unix_socket_directories=", "-c", "shared_buffers=16MB")
		})
	}
	data := func(i int) string { return filepath.Join(home, fmt.Sprint("data", i)) }
	do(filepath.Join(bin, "initdb"), "-D", data(0), "-U", "bench", "-A", "trust", "--no-sync")
	made := run(data(0))
	ready(t, made)
	if out, err := output(t, "pgbench", "-i", "-q", "-h", testnet.Host(), "-p", portOf(made.addr), "-U", "bench", "postgres"); err != nil {
		t.Fatalf("pgbench -i: %v\n%s", err, out)
	}
	made.end(syscall.SIGINT) // in order, so that the others are copies of it
	for i := 1; i < n; i++ {
		do("cp", "-a", data(0), data(i))
	}
	for i := range n {
		servers = append(servers, run(data(i)))
		ready(t, servers[i])
	}
	return servers
}

// ready waits until a server of PostgreSQL answers questions: it listens before that.
func ready(t *testing.T, p *process) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		out, err := output(t, "psql", "-h", testnet.Host(), "-p", portOf(p.addr), "-U", "bench", "-c", "select 1", "postgres")
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("psql: %v\n%s", err, out)
		}
	}
}
