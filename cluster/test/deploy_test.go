//go:build linux

package test

import (
	"context"
	"encoding/pem"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/cluster"
	"github.com/rabbit-backend/tcpio/cluster/internal/proc"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// The files of docs/cluster make three servers that a node works with: with TLS, with the
// permissions that they list and no more, and while a server is killed and started again.
func TestDeploymentFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, ca := writePEM(t), filepath.Join(dir, "ca.pem")
	must(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
		Bytes: testnet.ServerTLS().Certificates[0].Certificate[0]}), 0o600))
	env, err := os.ReadFile("../../docs/cluster/nats.env")
	must(t, err)
	addrs := freeAddrs(t, 9)
	program := natsServer(t)
	var urls []string
	start := func(i int) *proc.Child {
		// The file's variables, each with this machine's value.
		values := map[string]string{
			"NATS_NAME": "nats-" + string(rune('1'+i)), "NATS_LISTEN": addrs[i],
			"NATS_CLUSTER_LISTEN": addrs[3+i],
			"NATS_ROUTE_1":        "nats://" + addrs[3], "NATS_ROUTE_2": "nats://" + addrs[4],
			"NATS_ROUTE_3": "nats://" + addrs[5],
			"NATS_MONITOR": addrs[6+i],
			"NATS_CERT":    cert, "NATS_KEY": cert, "NATS_CA": ca,
			"NATS_STORE": filepath.Join(dir, "store-"+string(rune('1'+i))),
		}
		var all []string
		for line := range strings.Lines(string(env)) {
			name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
			if !ok || strings.HasPrefix(name, "#") {
				continue
			}
			if v := values[name]; v != "" {
				value = v
			}
			delete(values, name)
			all = append(all, name+"="+strings.Trim(value, `"`))
		}
		if len(values) > 0 {
			t.Fatalf("nats.env lacks %v", values)
		}
		s := proc.StartCommand(t, exec.Command(program, "-c", "../../docs/cluster/nats.conf"), all...)
		testnet.WaitFor(t, "the NATS server is ready", func() bool {
			return strings.Contains(strings.Join(s.Lines(), "\n"), "Server is ready")
		})
		return s
	}
	var all []*proc.Child
	for i := range 3 {
		all = append(all, start(i))
		urls = append(urls, "tls://"+addrs[i])
	}
	nc, err := nats.Connect(strings.Join(urls, ","), append(cluster.NATSOptions(), nats.RootCAs(ca),
		nats.UserInfo("node", "change-me"), nats.ReconnectWait(50*time.Millisecond))...)
	must(t, err)
	t.Cleanup(nc.Close)
	var refused atomic.Pointer[error]
	nc.SetErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused.Store(&err) })
	n, err := cluster.Open(testnet.Context(t), nc, &cluster.Options{Name: "chat", Sessions: &cluster.Sessions{Lease: 30 * time.Second}})
	must(t, err)
	t.Cleanup(func() { n.Close() })

	l, err := tcpio.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0"})
	must(t, err)
	served := make(chan error, 1)
	serving, stop := context.WithCancel(context.Background())
	go func() { served <- l.Serve(serving) }() // until stop
	t.Cleanup(func() { stop(); <-served })
	testnet.Dial(t, l)
	conn := (<-l.Events()).(tcpio.Opened).Conn

	var class *cluster.Class
	try := func(what string, f func() error) {
		t.Helper()
		var err error
		proc.Eventually(t, what, func() bool {
			err = f()
			return err == nil
		})
	}
	try("a class", func() (err error) { class, err = n.Class(testnet.Context(t), "rooms", cluster.History{}); return err })
	var fence uint64
	work := func(what string) {
		t.Helper()
		try("a record "+what, func() error { // once, however often that is tried
			_, err := class.Topic("lobby").PublishRecord(testnet.Context(t), what, []byte(what))
			return err
		})
		try("a claim "+what, func() error {
			s, err := n.Claim(testnet.Context(t), "ann", conn)
			if err == nil && s.Fence() <= fence {
				t.Errorf("the fence is %d after %d", s.Fence(), fence)
			} else if err == nil {
				fence = s.Fence()
			}
			return err
		})
	}
	work("at first")
	one := 2
	all[one].Kill()
	work("with one server down")
	start(one)
	// As the page says: the next one not before this one is whole.
	proc.Eventually(t, "the server is healthy", func() bool {
		r, err := http.Get("http://" + addrs[6+one] + "/healthz")
		if err != nil {
			return false
		}
		defer r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
	work("with three again")
	proc.Eventually(t, "the 3 records are there", func() bool { // the replica that answers may be behind
		count := 0
		whole, err := class.Topic("lobby").Resume(testnet.Context(t), conn, nil, cluster.Pos{}, func(cluster.Record) error { count++; return nil })
		class.Topic("lobby").Leave(conn)
		if count > 3 {
			t.Fatalf("%d records", count)
		}
		return err == nil && whole && count == 3
	})
	if err := refused.Load(); err != nil {
		t.Errorf("a node needs more than the file permits: %v", *err)
	}
	if _, err := n.Class(testnet.Context(t), "another", cluster.History{}); err == nil {
		t.Error("a class whose stream is not permitted")
	}
}
