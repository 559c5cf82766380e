//go:build linux

package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/cluster"
	"github.com/rabbit-backend/tcpio/cluster/embedded"
)

// A machine is one process of a cluster: here all are in this one.
type machine struct {
	nats   *embedded.Server
	node   *cluster.Node
	l      *tcpio.Listener
	served chan error
}

// start starts a machine whose connections have the actor that newActor returns.
func start(ctx context.Context, dir string, newActor func(*cluster.Node, *tcpio.Conn) tcpio.Actor) *machine {
	m := &machine{served: make(chan error, 1)}
	var err error
	if m.nats, err = embedded.Open(ctx, &embedded.Options{Dir: dir}); err != nil {
		log.Fatal(err)
	}
	if m.node, err = cluster.Open(ctx, m.nats.Conn(), &cluster.Options{Name: "example"}); err != nil {
		log.Fatal(err)
	}
	m.l, err = tcpio.Listen(&tcpio.ListenerOptions{
		Addr:     "127.0.0.1:0",
		NewActor: func(c *tcpio.Conn) tcpio.Actor { return newActor(m.node, c) },
	})
	if err != nil {
		log.Fatal(err)
	}
	go func() { m.served <- m.l.Serve(context.Background()) }()
	return m
}

// stop ends it in the order in which a program should.
func (m *machine) stop() {
	m.node.Close()
	m.l.Close()
	<-m.served
	m.nats.Close()
}

func dial(m *machine) net.Conn {
	c, err := net.Dial("tcp", m.l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	return c
}

// two starts two machines in a directory of their own.
func two(newActor func(*cluster.Node, *tcpio.Conn) tcpio.Actor) (a, b *machine, stop func()) {
	tmp, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	dir := filepath.Join(tmp, "nats")
	a, b = start(ctx, dir, newActor), start(ctx, dir, newActor)
	return a, b, func() {
		b.stop()
		a.stop()
		cancel()
		os.RemoveAll(tmp)
	}
}

// A chat room on two machines: what is written on one is read on both.
func Example() {
	a, b, stop := two(func(n *cluster.Node, c *tcpio.Conn) tcpio.Actor {
		room := n.Topic("room")
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			switch ev.(type) {
			case tcpio.Opened:
				return room.Join(c, &cluster.Member{ID: "guest"})
			case tcpio.Readable:
				var buf [1024]byte
				n, err := c.TryRead(buf[:])
				if err == tcpio.ErrWouldBlock {
					return nil
				}
				if err != nil {
					return err // the member leaves with its connection
				}
				return room.Publish(buf[:n]) // to all members, its author too
			}
			return nil
		})
	})
	defer stop()
	ann, bob := dial(a), dial(b)
	defer ann.Close()
	defer bob.Close()
	for { // when both see two members, what one says reaches the other
		one, whole := a.node.Topic("room").Members()
		other, wholeToo := b.node.Topic("room").Members()
		if whole && wholeToo && len(one) == 2 && len(other) == 2 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	fmt.Fprint(ann, "hello from another machine\n")
	for _, c := range []net.Conn{ann, bob} {
		buf := make([]byte, len("hello from another machine\n"))
		if _, err := io.ReadFull(c, buf); err != nil {
			log.Fatal(err)
		}
		fmt.Print(string(buf))
	}
	// Output:
	// hello from another machine
	// hello from another machine
}

// Who is there, on all machines: Watch begins with those of the moment.
func ExampleTopic_Watch() {
	a, b, stop := two(func(n *cluster.Node, c *tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			if _, ok := ev.(tcpio.Opened); ok {
				return n.Topic("room").Join(c, &cluster.Member{ID: "ann", Info: []byte("in a hurry")})
			}
			if _, ok := ev.(tcpio.Readable); ok {
				return io.EOF
			}
			return nil
		})
	})
	defer stop()
	news := make(chan string)
	end := a.node.Topic("room").Watch(func(p cluster.Presence) {
		for _, m := range p.Joined {
			news <- fmt.Sprintf("%s has come, %s", m.ID, m.Info)
		}
		for _, m := range p.Left {
			news <- m.ID + " has gone"
		}
	})
	defer end()
	c := dial(b)
	fmt.Println(<-news)
	c.Close()
	fmt.Println(<-news)
	// Output:
	// ann has come, in a hurry
	// ann has gone
}

// A message to a user, on whichever machine, and an answer. Nobody there is known at once.
func ExampleNode_Ask() {
	registered := make(chan error, 1)
	a, b, stop := two(func(n *cluster.Node, c *tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			switch ev := ev.(type) {
			case tcpio.Opened:
				registered <- n.Register("user ann", c) // a second device may have the same key
			case tcpio.Message:
				if p, ok := ev.Value.(cluster.Posted); ok {
					ev.Reply(append([]byte("I was asked "), p.Data...))
				}
			}
			return nil
		})
	})
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err := a.node.Ask(ctx, "user ann", []byte("how are you"))
	fmt.Println(errors.Is(err, cluster.ErrNobody))
	c := dial(b)
	defer c.Close()
	if err := <-registered; err != nil {
		log.Fatal(err)
	}
	for { // the machines learn of the key within milliseconds
		answer, err := a.node.Ask(ctx, "user ann", []byte("how are you"))
		if err == nil {
			fmt.Println(string(answer))
			return
		}
		if !errors.Is(err, cluster.ErrNobody) {
			log.Fatal(err)
		}
	}
	// Output:
	// true
	// I was asked how are you
}

// A machine goes out of service: its clients are told to come back, each at a time of its own.
func ExampleNode_Drain() {
	a, b, stop := two(func(n *cluster.Node, c *tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			switch ev := ev.(type) {
			case tcpio.Opened:
				return n.Register("ann", c)
			case tcpio.Message:
				if m, ok := ev.Value.(cluster.Moved); ok {
					fmt.Fprintf(c, "come back in %v\n", m.After)
					return io.EOF // or wait until the client closes
				}
			}
			return nil
		})
	})
	defer stop()
	c := dial(a)
	defer c.Close()
	for len(a.node.Registered("ann")) == 0 {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := a.node.Drain(ctx, time.Minute); err != nil { // returns when they have gone
		log.Fatal(err)
	}
	text, err := io.ReadAll(c)
	fmt.Print(string(text))
	fmt.Println(err, a.node.Ready() != nil, b.node.Ready() != nil)
	// Output:
	// come back in 0s
	// <nil> true false
}
