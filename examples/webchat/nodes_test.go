//go:build linux && long

package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// A process is a node that can be killed.
type process struct {
	*served
	cmd *exec.Cmd
}

// nodes starts processes that find each other by a directory. The first runs the server.
func nodes(t *testing.T, n int) (all []*process) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "nodes")
	for range n {
		cmd := program(context.Background(), "-addr", "127.0.0.1:0", "-nc", "127.0.0.1:0", "-cluster", dir, "-grace", "30s")
		if os.Getenv("WEBCHAT_LOG") != "" {
			cmd.Stderr = os.Stderr
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		p := &process{&served{t: t}, cmd}
		t.Cleanup(p.kill)
		if _, err := fmt.Fscanf(bufio.NewReader(out), "%s\nfor nc: %s\n", &p.page, &p.nc); err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

// kill is kill -9. A second call does nothing.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// Two browsers talk on two of three nodes. The node of one is killed, twice: the first time it is
// the one that runs the server. A load balancer takes the page to another node. Both pages show all
// lines once, in one order, and nobody is said to have left.
func TestBrowsersOnNodes(t *testing.T) {
	open := browse(t)
	all := nodes(t, 3)
	balancer := newCutter(t, all[0].addr())
	ann, bob := open(all[2].page, "ann"), open("http://"+balancer.addr()+"/", "bob")
	ann.join("lobby")
	bob.join("lobby")
	ann.when("document.querySelectorAll('#people li').length === 2")
	const lines = 60
	for n := 1; n <= lines; n++ {
		who := ann
		if n%2 == 0 {
			who = bob
		}
		who.say(fmt.Sprint("line ", n))
		if n == 20 || n == 41 { // with lines of both under way
			at := n / 40
			balancer.move(all[at+1].addr())
			all[at].kill()
		}
	}
	a, b := ann.shows(lines), bob.shows(lines)
	if strings.Join(a, "\n") != strings.Join(b, "\n") || len(a) != lines {
		t.Errorf("ann has\n%q\nbob has\n%q", a, b)
	}
	checkOrder(t, a, lines)
	for _, tab := range []*tab{ann, bob} {
		tab.state("online")
		tab.when("document.querySelectorAll('#people li').length === 2")
		tab.when("document.querySelector('.gap') === null && !document.body.innerText.includes('lost the connection')")
	}
}

// checkOrder holds that what each of two has said is there once, in its order: odd numbers and even
// ones.
func checkOrder(t *testing.T, shown []string, lines int) {
	t.Helper()
	for who := range 2 {
		next := who + 1
		for _, l := range shown {
			var n int
			if _, err := fmt.Sscanf(l, "line %d", &n); err == nil && n%2 == next%2 {
				if n != next {
					t.Errorf("line %d is not where it should be: %q", next, shown)
					return
				}
				next += 2
			}
		}
		if next <= lines {
			t.Errorf("line %d is missing: %q", next, shown)
		}
	}
}

// Who is alone in a room when the node is killed goes on at the other, which knew of neither: that is
// no arrival.
func TestAloneOnANodeThatIsKilled(t *testing.T) {
	all := nodes(t, 2)
	ann := all[1].dial()
	epoch := ann.join("ann", "lobby").Epoch
	ann.expect("came ann")
	ann.say(1, "one")
	ann.expect("say ann one")
	all[1].kill()
	again := all[0].dial()
	again.send(request{T: "hello", Token: token("ann"), Name: "ann", Room: "lobby", Epoch: epoch, Last: ann.last})
	again.say(2, "two")
	again.expect("say ann two")
	// Whoever comes from elsewhere sees all of it.
	bob := all[0].dial()
	bob.join("bob", "lobby")
	bob.expect("came ann", "say ann one", "say ann two", "came bob")
}

// Terminals say lines all the time on three nodes, while the nodes are killed one after the other
// and another takes its place. Each shows all lines of all, once, in one order.
func TestTerminalsOnNodes(t *testing.T) {
	all := nodes(t, 3)
	const each = 300
	var shown [2]testnet.Log
	var wg sync.WaitGroup
	for who := range 2 {
		pages := all[who].page + "," + all[2].page + "," + all[1-who].page
		in, typed, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer in.Close()
			if err := terminal(t.Context(), in, &shown[who], remote{pages: pages, name: fmt.Sprint("term", who), room: "lobby", ping: 2 * time.Second}); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			defer typed.Close()
			for n := range each {
				fmt.Fprintf(typed, "line %d\n", 2*n+1+who)
				time.Sleep(10 * time.Millisecond) // the pace of the load, not a wait
			}
			// It is there for what the other says last.
			last := fmt.Sprintf(": line %d\n", 2*each-who)
			for begun := time.Now(); !strings.Contains(shown[who].String(), last) && time.Since(begun) < testnet.Limit; {
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
	time.Sleep(time.Second)
	all[0].kill() // the one with the server
	time.Sleep(2 * time.Second)
	_ = all[1].cmd.Process.Signal(syscall.SIGTERM)
	wg.Wait()
	var said [2][]string
	for who := range 2 {
		for l := range strings.Lines(shown[who].String()) {
			if _, text, ok := strings.Cut(l, ": line "); ok {
				said[who] = append(said[who], "line "+strings.TrimSpace(text))
			}
		}
		if len(said[who]) != 2*each {
			t.Errorf("terminal %d shows %d lines of %d:\n%s", who, len(said[who]), 2*each, shown[who].String())
		}
		checkOrder(t, said[who], 2*each)
		if text := shown[who].String(); strings.Contains(text, "missing") || strings.Contains(text, "is taken") {
			t.Errorf("terminal %d:\n%s", who, text)
		}
	}
	if strings.Join(said[0], "\n") != strings.Join(said[1], "\n") {
		t.Errorf("the orders differ:\n%q\n%q", said[0], said[1])
	}
}

// move has new connections go to another address.
func (p *cutter) move(to string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.to = to
}
