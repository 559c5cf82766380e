//go:build linux && long

package tls_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// postgres starts a server that takes TLS connections alone, with the certificate of
// testnet.ServerTLS, and returns its address. Debian keeps the programs in a folder for each
// version.
func postgres(t *testing.T) string {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		t.Skip("SKIPPED: postgresql is not installed, and this was not tried with it")
	}
	bin := filepath.Dir(found[len(found)-1])
	var as *syscall.SysProcAttr
	uid, gid := os.Getuid(), os.Getgid()
	if uid == 0 { // the server refuses to run as root
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Skip("SKIPPED: there is no user postgres, and this was not tried")
		}
		uid, _ = strconv.Atoi(u.Uid)
		gid, _ = strconv.Atoi(u.Gid)
		as = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}
	dir, err := os.MkdirTemp("", "tcpio-postgres") // not t.TempDir, which others may not enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	own := func(path string) {
		if err := os.Chown(path, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	own(dir)
	ctx, cancel := context.WithTimeout(context.Background(), 4*testnet.Limit)
	t.Cleanup(cancel)
	command := func(name string, args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, filepath.Join(bin, name), args...)
		cmd.SysProcAttr, cmd.Dir = as, dir
		return cmd
	}
	data := filepath.Join(dir, "data")
	if out, err := command("initdb", "-D", data, "-U", "tcpio", "-A", "trust", "--no-sync", "--no-locale").CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	cert, key := pemFiles(t)
	for from, name := range map[string]string{cert: "server.crt", key: "server.key"} {
		p, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(data, name)
		if err := os.WriteFile(to, p, 0o600); err != nil {
			t.Fatal(err)
		}
		own(to)
	}
	hba := filepath.Join(data, "pg_hba.conf")
	if err := os.WriteFile(hba, []byte("hostssl all all 127.0.0.0/8 trust\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	own(hba)
	addr := testnet.FreeAddr(t)
	host, port, _ := net.SplitHostPort(addr)
	var said testnet.Log
	cmd := command("postgres", "-D", data, "-p", port, "-c", "listen_addresses="+host, "-c", "ssl=on",
		"-c", "unix_socket_directories="+dir, "-c", "fsync=off")
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGINT)
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	})
	testnet.WaitFor(t, "the server is ready", func() bool { return said.Count("ready to accept connections") > 0 })
	return addr
}

var splitPostgres = tcpio.LengthSplitter{Size: 4, Offset: 1, Adjust: -4, Keep: true, Max: 64 << 10}.Split

// An actor speaks PostgreSQL's protocol: SSLRequest in plain text, the upgrade behind the server's
// answer, then a query.
func TestPostgreSQLClientUpgradesToTLS(t *testing.T) {
	addr := postgres(t)
	l := plainClients(t, tcpio.ListenerOptions{})
	c, err := l.Dial(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	rows, ended := make(chan string, 10), make(chan error, 1)
	asked := false
	handle := func(ev tcpio.Event) error {
		switch ev.(type) {
		case tcpio.Opened:
			_, err := c.TryWrite([]byte{0, 0, 0, 8, 4, 210, 22, 47})
			return err
		case tcpio.Closed:
			ended <- c.Err()
		case tcpio.Readable:
			if !asked {
				var answer [1]byte // no more than that is plain text
				if n, err := c.TryRead(answer[:]); n == 0 {
					return err
				}
				if answer[0] != 'S' {
					return fmt.Errorf("the server has no TLS: %q", answer)
				}
				asked = true
				return c.StartTLSClient(testnet.ClientTLS())
			}
			if c.TLS() != nil && !c.Data().(*pgState).begun {
				c.Data().(*pgState).begun = true
				const params = "user\x00tcpio\x00database\x00postgres\x00\x00"
				start := binary.BigEndian.AppendUint32(nil, uint32(8+len(params)))
				if _, err := c.TryWrite(append(append(start, 0, 3, 0, 0), params...)); err != nil {
					return err
				}
			}
			for m, err := range c.Frames(splitPostgres) {
				if err != nil {
					return err
				}
				switch m[0] {
				case 'E':
					return fmt.Errorf("the server says %q", m[5:])
				case 'D':
					rows <- string(m[11:])
				case 'Z':
					if st := c.Data().(*pgState); !st.queried {
						st.queried = true
						const q = "select version || ' ' || ssl from pg_stat_ssl where pid = pg_backend_pid()\x00"
						if _, err := c.TryWrite(append(binary.BigEndian.AppendUint32([]byte{'Q'}, uint32(4+len(q))), q...)); err != nil {
							return err
						}
					}
				}
			}
		}
		return nil
	}
	c.SetData(new(pgState))
	if err := c.Attach(tcpio.ActorFunc(handle)); err != nil {
		t.Fatal(err)
	}
	select {
	case row := <-rows:
		if row != "TLSv1.3 true" {
			t.Errorf("the server says of the connection: %q", row)
		}
	case err := <-ended:
		t.Fatalf("the connection ended: %v", err)
	case <-time.After(testnet.Limit):
		t.Fatal("no answer")
	}
	c.Close()
}

type pgState struct{ begun, queried bool }

// psql with sslmode=require speaks through a server of tcpio's that takes its TLS off and puts it
// on again: StartTLS on one side, StartTLSClient on the other.
func TestPostgreSQLThroughARelayWithTLSOnBothSides(t *testing.T) {
	psql := testnet.Program(t, "psql")
	addr := postgres(t)
	request := []byte{0, 0, 0, 8, 4, 210, 22, 47}
	var l *tcpio.Listener
	l = harness.Listen(t, tcpio.ListenerOptions{NewActor: func(front *tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			if _, ok := ev.(tcpio.Readable); !ok {
				return nil
			}
			asked := make([]byte, 8)
			if _, err := front.TryRead(asked); err != nil || string(asked) != string(request) {
				return fmt.Errorf("no SSLRequest: %q, %v", asked, err)
			}
			back, err := l.Dial(t.Context(), "tcp", addr)
			if err != nil {
				return err
			}
			var answer [1]byte
			_, _ = back.Write(request)
			if _, err := back.Read(answer[:]); err != nil || answer[0] != 'S' {
				return fmt.Errorf("the server has no TLS: %q, %v", answer, err)
			}
			if err := back.StartTLSClient(testnet.ClientTLS()); err != nil {
				return err
			}
			_, _ = front.TryWrite([]byte{'S'})
			if err := front.StartTLS(testnet.ServerTLS()); err != nil {
				return err
			}
			pass := func(from, to *tcpio.Conn) tcpio.Actor {
				return tcpio.ActorFunc(func(ev tcpio.Event) error {
					switch ev.(type) {
					case tcpio.Readable:
						p := make([]byte, 16<<10)
						n, err := from.TryRead(p)
						switch err {
						case nil:
							_, err = to.Write(p[:n])
						case tcpio.ErrWouldBlock:
							err = nil
						}
						return err
					case tcpio.Closed:
						to.Close()
					}
					return nil
				})
			}
			if err := front.Attach(pass(front, back)); err != nil {
				return err
			}
			return back.Attach(pass(back, front))
		})
	}})
	harness.Start(t, l)
	_, relay, _ := net.SplitHostPort(l.Addr().String())
	out := run(t, psql, "-X", "-A", "-t", "-c", "select version from pg_stat_ssl where pid = pg_backend_pid()",
		"-c", "select sum(length(repeat('x', n))) from generate_series(1, 2000) n", "-c", "select repeat('y', 300000)",
		"host=127.0.0.1 port="+relay+" user=tcpio dbname=postgres sslmode=require")
	if !strings.HasPrefix(out, "TLSv1.3\n2001000\nyyyy") || len(out) != len("TLSv1.3\n2001000\n")+300001 {
		t.Errorf("psql: %.200q, %d bytes", out, len(out))
	}
}
