package embedded

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rabbit-backend/tcpio/cluster/internal/proc"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

var secret = strings.Repeat("s", minSecret)

// freeAddrs gives each machine an address.
func freeAddrs(t *testing.T, names ...string) map[string]string {
	t.Helper()
	peers := make(map[string]string)
	for _, name := range names {
		peers[name] = testnet.FreeAddr(t)
	}
	return peers
}

// mutual is a configuration for both ends of a connection.
func mutual() *tls.Config {
	c := testnet.ServerTLS()
	c.NextProtos = nil
	c.RootCAs = testnet.ClientTLS().RootCAs
	c.ClientCAs, c.ClientAuth = c.RootCAs, tls.RequireAndVerifyClientCert
	c.ServerName = "localhost"
	return c
}

// Three servers with fixed names, TLS and JetStream: what is stored survives one of them.
func TestMachines(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	peers := freeAddrs(t, "a", "b", "c")
	stores := map[string]string{"a": t.TempDir(), "b": t.TempDir(), "c": t.TempDir()}
	start := func(name string) *Server {
		s, err := Start(testnet.Context(t), &Machine{Name: name, Peers: peers, Secret: secret, TLS: mutual(), Store: stores[name]})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	a, b, c := start("a"), start("b"), start("c")
	js, err := jetstream.New(a.Conn())
	if err != nil {
		t.Fatal(err)
	}
	var kv jetstream.KeyValue
	// Without a leader a call gets no answer, so each has a limit of its own.
	try := func() context.Context {
		short, cancel := context.WithTimeout(ctx, 2*time.Second)
		t.Cleanup(cancel)
		return short
	}
	proc.Eventually(t, "a leader", func() bool {
		kv, err = js.CreateKeyValue(try(), jetstream.KeyValueConfig{Bucket: "b", Replicas: 3})
		return err == nil
	})
	proc.Eventually(t, "an acknowledged put", func() bool {
		_, err = kv.PutString(try(), "k", "v")
		return err == nil
	})
	b.Close()
	proc.Eventually(t, "a put with two servers of three", func() bool {
		_, err := kv.PutString(try(), "k", "w")
		return err == nil
	})
	again := start("b")
	if js, err = jetstream.New(again.Conn()); err != nil {
		t.Fatal(err)
	}
	proc.Eventually(t, "the value at the server that came back", func() bool {
		kv, err := js.KeyValue(try(), "b")
		if err != nil {
			return false
		}
		e, err := kv.Get(try(), "k")
		return err == nil && string(e.Value()) == "w"
	})
	_ = c
}

// A configuration that would let others in, or never have a majority, is an error that names the
// field.
func TestMachineIsChecked(t *testing.T) {
	t.Parallel()
	loop := map[string]string{"a": "127.0.0.1:6222", "b": "[::1]:6222"}
	far := map[string]string{"a": "127.0.0.1:6222", "b": "10.0.0.2:6222"}
	open := mutual()
	open.InsecureSkipVerify = true
	for want, m := range map[string]*Machine{
		"nil":                  nil,
		"Name":                 {Name: "x", Peers: loop, Secret: secret},
		"Secret":               {Name: "a", Peers: loop, Secret: "short"},
		"needs 3 or 5":         {Name: "a", Peers: loop, Secret: secret, Store: t.TempDir()},
		"Machine.TLS is nil":   {Name: "a", Peers: far, Secret: secret},
		"Listen":               {Name: "a", Peers: loop, Secret: secret, Listen: "0.0.0.0:6222"},
		"InsecureSkipVerify":   {Name: "a", Peers: far, Secret: secret, TLS: open},
		"has no port":          {Name: "a", Peers: map[string]string{"a": "127.0.0.1:0"}, Secret: secret},
		"missing port in addr": {Name: "a", Peers: map[string]string{"a": "127.0.0.1"}, Secret: secret},
	} {
		s, err := Start(testnet.Context(t), m)
		if err == nil {
			s.Close()
			t.Errorf("%s: Start succeeded", want)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("got %q, want it to name %q", err, want)
		}
	}
}

// A directory that cannot be is an error of Start too.
func TestStoreCannotBe(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Start(testnet.Context(t), &Machine{Name: "a", Peers: freeAddrs(t, "a", "b", "c"), Secret: secret,
		Store: filepath.Join(file, "store")})
	if err == nil {
		s.Close()
		t.Fatal("Start succeeded")
	}
	if !errors.Is(err, syscall.ENOTDIR) && !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("got %v, want the system's error", err)
	}
}

// A port that is taken is an error of Start, and ends no process.
func TestPortIsTaken(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	peers := map[string]string{"a": ln.Addr().String()}
	s, err := Start(testnet.Context(t), &Machine{Name: "a", Peers: maps.Clone(peers), Secret: secret})
	if err == nil {
		s.Close()
		t.Fatal("Start succeeded")
	}
	if !strings.Contains(fmt.Sprint(err), "address already in use") {
		t.Errorf("got %v, want the system's error", err)
	}
}
