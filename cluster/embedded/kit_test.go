package embedded

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rabbit-backend/tcpio/cluster/internal/proc"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

func TestMain(m *testing.M) {
	if proc.Main(map[string]func(*bufio.Scanner) error{"member": memberRole}) {
		return
	}
	testnet.Main(m, "socket") // NATS' client leaves what it has dialed if the server says nothing
}

// memberRole joins the cluster of a directory, answers requests, and says "ready".
func memberRole(in *bufio.Scanner) error {
	o := &Options{Dir: os.Getenv("DIR"), Store: os.Getenv("STORE") != ""}
	s, err := Open(context.Background(), o)
	if err != nil {
		return err
	}
	if _, err := s.Conn().Subscribe("who", func(m *nats.Msg) {
		_ = m.Respond([]byte(os.Getenv("NAME")))
	}); err != nil {
		return err
	}
	if err := s.Conn().Flush(); err != nil {
		return err
	}
	fmt.Println("ready")
	for in.Scan() {
	}
	return s.Close()
}

func startMember(t *testing.T, dir, name string, env ...string) *proc.Child {
	t.Helper()
	c := proc.Start(t, "member", append(env, "DIR="+dir, "NAME="+name)...)
	c.Line("ready")
	return c
}

func open(t *testing.T, o *Options) *Server {
	t.Helper()
	s, err := Open(testnet.Context(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// answers returns the names of the members that answer, as soon as there are n.
func answers(t *testing.T, nc *nats.Conn, n int) string {
	t.Helper()
	var got []string
	testnet.WaitFor(t, fmt.Sprintf("%d members that answer", n), func() bool {
		got = nil
		inbox := nats.NewInbox()
		sub, err := nc.SubscribeSync(inbox)
		if err != nil {
			return false
		}
		defer sub.Unsubscribe()
		if nc.PublishRequest("who", inbox, nil) != nil {
			return false
		}
		for len(got) < n {
			m, err := sub.NextMsg(200 * time.Millisecond)
			if err != nil || m.Header.Get("Status") == "503" {
				return false
			}
			got = append(got, string(m.Data))
		}
		return true
	})
	return strings.Join(got, " ")
}

// files lists the mesh's files in the directory.
func files(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "mesh", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}
