//go:build linux

package test

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/rabbit-backend/tcpio/cluster"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// The NATS server hangs: its machine accepts connections, and it answers nobody. Publish does not wait
// for NATS' client, which dials it all the time, and Post, PublishRecord and Claim do not; when the
// server goes on, so does all.
// To see it fail: have cut be false.
func TestNothingWaitsForAServerThatHangs(t *testing.T) {
	t.Parallel()
	s := startOneServer(t)
	nc, err := nats.Connect(s.urls, append(cluster.NATSOptions(), nats.PingInterval(200*time.Millisecond),
		nats.ReconnectWait(time.Millisecond), nats.ReconnectJitter(time.Millisecond, time.Millisecond), nats.Timeout(time.Second))...)
	must(t, err)
	defer nc.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*testnet.Limit)
	defer cancel()
	n, err := cluster.Open(ctx, nc, &cluster.Options{Name: "hang", Heartbeat: beat, Sessions: &cluster.Sessions{Lease: lease}})
	must(t, err)
	defer n.Close()
	class, err := n.Class(ctx, "log", cluster.History{})
	must(t, err)
	plain, log := n.Topic("plain"), class.Topic("log")
	must(t, plain.Publish([]byte("x")))
	must(t, log.Publish([]byte("x")))
	hung := s.all[0]
	hung.Signal(syscall.SIGSTOP)
	goesOn := func() { hung.Signal(syscall.SIGCONT) }
	defer func() { goesOn() }()
	// NATS' client knows a moment before the node does.
	testnet.WaitFor(t, "the node knows", func() bool { return errors.Is(n.Ready(), cluster.ErrDisconnected) })
	var calls int
	var most time.Duration
	for begun := time.Now(); time.Since(begun) < 3*time.Second; calls++ {
		at := time.Now()
		for what, err := range map[string]error{"Publish": plain.Publish([]byte("x")), "PublishRecord": log.Publish([]byte("x")),
			"Post": n.Post(ctx, "nobody", nil), "Ready": n.Ready()} {
			if !errors.Is(err, cluster.ErrDisconnected) {
				t.Fatalf("%s: %v", what, err)
			}
		}
		most = max(most, time.Since(at))
		time.Sleep(time.Millisecond)
	}
	t.Logf("%d rounds in 3 s, the longest took %v", calls, most)
	// With NATS' client each would take most of a second.
	if calls < 10 {
		t.Errorf("%d rounds in 3 s", calls)
	}
	goesOn()
	goesOn = func() {}
	testnet.WaitFor(t, "the node is ready again", func() bool { return n.Ready() == nil })
	testnet.WaitFor(t, "it publishes again", func() bool { return plain.Publish([]byte("x")) == nil && log.Publish([]byte("x")) == nil })
}

func startOneServer(t testing.TB) *servers {
	t.Helper()
	s := &servers{t: t}
	addr := testnet.FreeAddr(t)
	s.files = []string{writeConfig(t, fmt.Sprintf(`
server_name: hangs
listen: %q
jetstream { store_dir: %q }
`, addr, t.TempDir()))}
	s.urls = "nats://" + addr
	s.start()
	return s
}
