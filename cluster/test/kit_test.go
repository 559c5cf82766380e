//go:build linux

package test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/rabbit-backend/tcpio/cluster"
	"github.com/rabbit-backend/tcpio/cluster/embedded"
	"github.com/rabbit-backend/tcpio/cluster/internal/proc"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// mutual is a configuration for both ends of a connection between those that have this certificate.
func mutual(cert tls.Certificate) (*tls.Config, error) {
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert, ServerName: "localhost"}, nil
}

// writePEM writes a certificate for localhost and its key into a file, and returns its name.
func writePEM(t testing.TB) string {
	t.Helper()
	cert := testnet.ServerTLS().Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	must(t, err)
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})
	text = append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	name := filepath.Join(t.TempDir(), "cert.pem")
	must(t, os.WriteFile(name, text, 0o600))
	return name
}

// built is the nats-server that tests share, as long as one uses it.
var built struct {
	mu    sync.Mutex
	dir   string
	users int
}

// natsServer returns the path of a nats-server, built from the module that go.mod names.
func natsServer(t testing.TB) string {
	t.Helper()
	built.mu.Lock()
	defer built.mu.Unlock()
	if built.users == 0 {
		dir, err := os.MkdirTemp("", "")
		must(t, err)
		out, err := exec.Command("go", "build", "-o", dir, "github.com/nats-io/nats-server/v2").CombinedOutput()
		if err != nil {
			os.RemoveAll(dir)
			t.Fatalf("go build nats-server: %v: %s", err, out)
		}
		built.dir = dir
	}
	built.users++
	t.Cleanup(func() {
		built.mu.Lock()
		defer built.mu.Unlock()
		if built.users--; built.users == 0 {
			os.RemoveAll(built.dir)
		}
	})
	return filepath.Join(built.dir, "nats-server")
}

// freeAddrs returns addresses on which nobody listens.
func freeAddrs(t testing.TB, n int) []string {
	t.Helper()
	var addrs []string
	for range n {
		addrs = append(addrs, testnet.FreeAddr(t))
	}
	return addrs
}

// servers are nats-server processes.
type servers struct {
	t     testing.TB
	files []string
	all   []*proc.Child
	urls  string
}

// startServers starts three nats-servers of one cluster with JetStream.
func startServers(t testing.TB) *servers {
	t.Helper()
	s := &servers{t: t}
	addrs := freeAddrs(t, 6)
	var routes, urls []string
	for i := range 3 {
		routes = append(routes, fmt.Sprintf("%q", "nats://"+addrs[3+i]))
		urls = append(urls, "nats://"+addrs[i])
	}
	for i := range 3 {
		s.files = append(s.files, writeConfig(t, fmt.Sprintf(`
server_name: s%d
listen: %q
jetstream { store_dir: %q }
cluster { name: proof, listen: %q, ping_interval: "1s", routes: [%s] }
`, i, addrs[i], t.TempDir(), addrs[3+i], strings.Join(routes, ", "))))
	}
	s.urls = strings.Join(urls, ",")
	s.start()
	return s
}

func writeConfig(t testing.TB, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "nats.conf")
	must(t, os.WriteFile(name, []byte(text), 0o600))
	return name
}

func (s *servers) start() {
	s.t.Helper()
	s.all = nil
	for _, f := range s.files {
		c := proc.StartCommand(s.t, exec.Command(natsServer(s.t), "-c", f))
		s.all = append(s.all, c)
	}
	for _, c := range s.all {
		testnet.WaitFor(s.t, "the NATS server is ready", func() bool {
			return strings.Contains(strings.Join(c.Lines(), "\n"), "Server is ready")
		})
	}
}

func (s *servers) kill() {
	for _, c := range s.all {
		c.Kill()
	}
}

// A node is a child of the role "node".
type node struct {
	*proc.Child
	t    testing.TB
	name string
	id   string
}

func startNode(t testing.TB, name string, env ...string) *node {
	t.Helper()
	n := &node{Child: proc.Start(t, "node", append(env, "NAME="+name)...), t: t, name: name}
	n.id = n.Line("ready ")
	return n
}

// ask gives a command and returns the answer that begins with prefix.
func (n *node) ask(command, prefix string) string {
	n.t.Helper()
	n.Say("%s", command)
	return n.Line(prefix)
}

// claim claims a key, and returns the fence, 0 if that failed, and the time it took.
func (n *node) claim(key string) (fence uint64, took time.Duration, why string) {
	n.t.Helper()
	words := strings.SplitN(n.ask("claim "+key, "claimed "), " ", 3)
	fence, err := strconv.ParseUint(words[0], 10, 64)
	must(n.t, err)
	took, err = time.ParseDuration(words[1])
	must(n.t, err)
	if len(words) > 2 {
		why = words[2]
	}
	return fence, took, why
}

func (n *node) report() (r report) {
	n.t.Helper()
	text := n.ask("report", "report ")
	must(n.t, json.Unmarshal([]byte(strings.TrimSuffix(text, " <nil>")), &r))
	return r
}

// awaitClaim claims until it succeeds, and checks that the fence has grown.
func (n *node) awaitClaim(key string, above uint64) uint64 {
	n.t.Helper()
	var fence uint64
	proc.Eventually(n.t, n.name+" claims "+key, func() bool {
		fence, _, _ = n.claim(key)
		return fence != 0
	})
	if fence <= above {
		n.t.Errorf("%s: fence %d of %q behind %d", n.name, fence, key, above)
	}
	return fence
}

// membersOf is what the list of members must be.
func membersOf(nodes ...*node) string {
	var ids []string
	for _, n := range nodes {
		for i := range members {
			ids = append(ids, n.name+strconv.Itoa(i))
		}
	}
	slices.Sort(ids)
	return "true " + strings.Join(ids, " ")
}

// awaitMembers waits until every node sees the members of all of them and no others, and returns
// how long that took.
func awaitMembers(t testing.TB, nodes ...*node) time.Duration {
	t.Helper()
	begun := time.Now()
	want := membersOf(nodes...)
	for _, n := range nodes {
		got := ""
		testnet.WaitFor(t, n.name+" sees "+want, func() bool {
			got = n.ask("members", "members ")
			return got == want
		})
	}
	return time.Since(begun)
}

// settle stops the load and checks what must be true then on nodes that have been there throughout.
func settle(t testing.TB, nodes ...*node) {
	t.Helper()
	for _, n := range nodes {
		n.ask("stop", "stopped")
	}
	awaitMembers(t, nodes...)
	published := make(map[string]int64)
	for _, n := range nodes {
		r := n.report()
		published[r.ID] = r.Published
	}
	for _, n := range nodes {
		var r report
		var got, want int64
		testnet.WaitFor(t, fmt.Sprintf("%s has got or lost all that was published", n.name), func() bool {
			r = n.report()
			got, want = 0, 0
			for id, count := range published {
				got, want = got+r.Received[id], want+count
			}
			return got+int64(r.Stats.Lost)+int64(r.Stats.Skipped) >= want
		})
		for id, count := range published {
			if r.Received[id] > count {
				t.Errorf("%s: a member got %d of %d that %s has published", n.name, r.Received[id], count, id)
			}
		}
		t.Logf("%s: got %d of %d, lost %d, recorded %d, refilled %d, claims %d, replaced %d, unsure %d",
			n.name, got, want, r.Stats.Lost, r.Recorded, r.Stats.Refilled, r.Stats.Claims, r.Replaced, r.Unsure)
	}
	for _, n := range nodes {
		n.Say("verify")
	}
	for _, n := range nodes {
		t.Logf("%s: all of %s records", n.name, n.Line("verified "))
	}
}

// raceReport returns the race detector's report with which a child's lines begin, and whether code of
// ours has part in it. The children run NATS' server, too: what it races with itself is not ours to
// mend.
func raceReport(lines []string) (report string, ours bool) {
	end := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "==================") })
	if end < 0 {
		end = len(lines) // it was killed while it reported
	}
	report = strings.Join(lines[:end], "\n")
	accesses, _, _ := strings.Cut(report, "\nGoroutine ") // what follows is who began them
	return report, strings.Contains(accesses, "github.com/rabbit-backend/tcpio")
}

func TestRacesOfNATSAreToldFromOurs(t *testing.T) {
	const own, nats = "  github.com/rabbit-backend/tcpio/cluster.(*Node).Publish()", "  github.com/nats-io/nats-server/v2/server.(*raft).run()"
	for _, test := range []struct {
		write, read, began string
		ours               bool
	}{{nats, nats, own, false}, {own, nats, nats, true}, {nats, own, nats, true}} {
		lines := []string{"WARNING: DATA RACE", "Write at 0x1 by goroutine 7:", test.write, "", "Previous read at 0x1 by goroutine 8:",
			test.read, "", "Goroutine 7 (running) created at:", test.began, "==================", own}
		if report, ours := raceReport(lines); ours != test.ours || strings.Count(report, "\n") != 8 {
			t.Errorf("%+v: %v, %s", test, ours, report)
		}
	}
}

// check fails the test for every promise that a child says is broken, and looks at all fences.
func check(t testing.TB, nodes ...*node) {
	t.Helper()
	fences := make(map[string]map[string]bool)
	for _, n := range nodes {
		lines := n.Lines()
		for i, line := range lines {
			if strings.HasPrefix(line, "violation ") || strings.HasPrefix(line, "failed:") {
				t.Errorf("%s: %s", n.name, line)
			}
			switch {
			case strings.HasPrefix(line, "panic"):
				t.Errorf("%s: %s", n.name, strings.Join(lines[i:], "\n"))
			case strings.Contains(line, "DATA RACE"):
				if report, ours := raceReport(lines[i:]); ours {
					t.Errorf("%s: %s", n.name, report)
				} else {
					t.Logf("%s, within NATS' code alone: %s", n.name, report)
				}
			}
			if fence, ok := strings.CutPrefix(line, "fence "); ok {
				key, number, _ := strings.Cut(fence, "=")
				if fences[key] == nil {
					fences[key] = make(map[string]bool)
				}
				if fences[key][number] {
					t.Errorf("%s: a second session of %s with the fence %s", n.name, key, number)
				}
				fences[key][number] = true
			}
		}
	}
	total := 0
	for key := range maps.Keys(fences) {
		total += len(fences[key])
	}
	t.Logf("%d fences, all different", total)
}

// load has all nodes publish and claim.
func load(nodes ...*node) {
	for _, n := range nodes {
		n.ask("load 5ms", "loading")
	}
}

// stopped stops a process for a while.
func (n *node) stopped(d time.Duration) {
	n.Signal(syscall.SIGSTOP)
	time.Sleep(d)
	n.Signal(syscall.SIGCONT)
}

func readMutual(file string) (*tls.Config, error) {
	if file == "" {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(file, file)
	if err != nil {
		return nil, err
	}
	return mutual(cert)
}

// connect connects a child to NATS as its environment says: to servers, or to an embedded one.
func connect(ctx context.Context) (nc *nats.Conn, end func(), err error) {
	if urls := os.Getenv("NATS"); urls != "" {
		opts := append(cluster.NATSOptions(), nats.ReconnectWait(50*time.Millisecond),
			nats.ReconnectJitter(20*time.Millisecond, 20*time.Millisecond), nats.PingInterval(time.Second))
		if ca := os.Getenv("CA"); ca != "" {
			opts = append(opts, nats.RootCAs(ca))
		}
		if creds := os.Getenv("CREDS"); creds != "" {
			opts = append(opts, nats.UserCredentials(creds))
		}
		nc, err = nats.Connect(urls, opts...)
		if err != nil {
			return nil, nil, err
		}
		return nc, nc.Close, nil
	}
	if dir := os.Getenv("DIR"); dir != "" {
		s, err := embedded.Open(ctx, &embedded.Options{Dir: dir, Store: true})
		if err != nil {
			return nil, nil, err
		}
		return s.Conn(), func() { s.Close() }, nil
	}
	m := &embedded.Machine{Name: os.Getenv("NAME"), Secret: os.Getenv("SECRET"), Store: os.Getenv("STORE"),
		Peers: make(map[string]string)}
	for _, peer := range strings.Fields(os.Getenv("PEERS")) {
		name, addr, _ := strings.Cut(peer, "=")
		m.Peers[name] = addr
	}
	if m.TLS, err = readMutual(os.Getenv("PEM")); err != nil {
		return nil, nil, err
	}
	s, err := embedded.Start(ctx, m)
	if err != nil {
		return nil, nil, err
	}
	return s.Conn(), func() { s.Close() }, nil
}
