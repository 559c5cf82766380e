//go:build linux

package cluster

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

func TestPostAndAskSayWhatHappened(t *testing.T) {
	servers := natsServers(t, 2)
	sites, gates := openGated(t, servers, Options{})
	a, b := sites[0], sites[1]
	ctx, cancel := context.WithTimeout(context.Background(), testnet.Limit)
	defer cancel()
	// A handler that blocks, with room for two.
	block, blocked := make(chan struct{}), make(chan struct{}, 1)
	l, err := tcpio.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0", MailboxSize: 2, NewActor: func(*tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			if m, ok := ev.(tcpio.Message); ok {
				if string(m.Value.(Posted).Data) == "odd" {
					m.Reply("no bytes")
					return nil
				}
				select {
				case blocked <- struct{}{}:
				default: // the test has seen one
				}
				<-block
			}
			return nil
		})
	}})
	must(t, err)
	served := make(chan error, 1)
	go func() { served <- l.Serve(context.Background()) }()
	defer func() { l.Close(); <-served }()
	nc, err := net.Dial("tcp", l.Addr().String())
	must(t, err)
	defer nc.Close()
	var conn *tcpio.Conn
	testnet.WaitFor(t, "the connection is there", func() bool {
		for c := range l.Conns() {
			conn = c
		}
		return conn != nil
	})
	must(t, b.Register("slow", conn))
	testnet.WaitFor(t, "the key is known", func() bool {
		_, err := a.Ask(ctx, "slow", []byte("odd"))
		return errors.Is(err, ErrNoReply)
	})
	must(t, a.Post(ctx, "slow", []byte("1")))
	testnet.Receive(t, "the handler's call", blocked)
	must(t, a.Post(ctx, "slow", []byte("2")))
	must(t, a.Post(ctx, "slow", []byte("3")))
	if err := a.Post(ctx, "slow", []byte("4")); !errors.Is(err, tcpio.ErrMailboxFull) {
		t.Errorf("Post to a full mailbox: %v", err)
	}
	// Another device, elsewhere, takes it.
	must(t, a.Register("slow", a.client(t).conn))
	testnet.WaitFor(t, "the other device takes it", func() bool { return a.Post(ctx, "slow", []byte("5")) == nil })
	close(block)

	must(t, b.Register("b", b.client(t).conn))
	testnet.WaitFor(t, "the key is known", func() bool { return a.Post(ctx, "b", nil) == nil })
	gates[1].hold()
	unknown := false
	for limit := 20 * time.Millisecond; !unknown; limit *= 2 { // its time may be over before it is sent
		short, cancelShort := context.WithTimeout(ctx, limit)
		defer cancelShort()
		err := a.Post(short, "b", nil)
		if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			t.Fatalf("Post to a node that hangs: %v", err)
		}
		unknown = errors.Is(err, ErrUnknown)
		if err := a.Post(short, "b", nil); errors.Is(err, ErrUnknown) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Post with a ctx that has ended: %v", err)
		}
	}
	waiting := make(chan error, 1)
	spy, err := connect(t, servers[1].ClientURL()).SubscribeSync(a.subj.key("b"))
	must(t, err)
	testnet.WaitFor(t, "what is posted is seen", func() bool {
		short, cancelShort := context.WithTimeout(ctx, 10*time.Millisecond)
		defer cancelShort()
		_ = a.Post(short, "b", nil)
		n, _, err := spy.Pending()
		return err == nil && n > 0
	})
	go func() { _, err := a.Ask(ctx, "b", []byte("echo")); waiting <- err }()
	for sent := false; !sent; {
		m, err := spy.NextMsg(testnet.Limit)
		must(t, err)
		sent = strings.HasSuffix(string(m.Data), "echo")
	}
	gates[0].close()
	if err := testnet.Receive(t, "its end", waiting); !errors.Is(err, ErrUnknown) || !errors.Is(err, ErrDisconnected) {
		t.Errorf("Ask whose connection is lost: %v", err)
	}
	if err := a.Post(ctx, "b", nil); !errors.Is(err, ErrDisconnected) || errors.Is(err, ErrUnknown) {
		t.Errorf("Post without a connection: %v", err)
	}
	gates[1].close() // with all that it holds
	gates[0].release()
	gates[1].release()
	testnet.WaitFor(t, "all is well again", func() bool { return a.Post(ctx, "b", []byte("again")) == nil })
	for len(b.got) > 0 {
		if m := <-b.got; string(m.Value.(Posted).Data) == "echo" {
			t.Error("a request that was given up arrives later")
		}
	}
	if _, err := a.Ask(ctx, strings.Repeat("k", maxToken+1), nil); !errors.Is(err, ErrName) {
		t.Error(err)
	}
	if err := a.Topic("x").Publish(make([]byte, 2<<20)); !errors.Is(err, ErrTooLong) {
		t.Errorf("a message of 2 MiB: %v", err)
	}
	long := a.Topic(strings.Repeat("t", maxToken+1))
	if err := long.Join(conn, nil); !errors.Is(err, ErrName) {
		t.Error(err)
	}
	if err := long.Publish(nil); !errors.Is(err, ErrName) {
		t.Error(err)
	}
}

// The killed owner of a request gives no answer: the poster learns that before its ctx ends.
// To see it fail: send no probe.
func TestAnAskWhoseNodeIsKilledEnds(t *testing.T) {
	sites := openSites(t, natsServers(t, 2), Options{})
	a, b := sites[0], sites[1]
	ctx, cancel := context.WithTimeout(context.Background(), 10*testnet.Limit)
	defer cancel()
	must(t, b.Register("k", b.client(t).conn))
	testnet.WaitFor(t, "the key is known", func() bool { return a.Post(ctx, "k", nil) == nil })
	waiting := make(chan error, 1)
	go func() { _, err := a.Ask(ctx, "k", []byte("no reply")); waiting <- err }()
	for string(testnet.Receive(t, "the question", b.got).Value.(Posted).Data) != "no reply" {
	}
	b.nc.Close()
	if err := testnet.Receive(t, "the end", waiting); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
}
