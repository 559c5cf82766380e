//go:build linux

package cluster

import (
	"bufio"
	"context"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// A node has failed, and all its clients resume at another one at the same moment, each from where
// it was, while more is published: all catch up, each record comes once and in order, and the
// stream is asked once for each position at most, not for each client.
// To see it fail: have extend do nothing.
func TestAHerdThatResumesAsksTheStreamOnce(t *testing.T) {
	const (
		before, behind, during = 300, 100, 300 // records; of which clients have missed 1 to behind
		asked                  = behind + 50   // requests to the stream
	)
	n := 300
	if testnet.Long {
		n = 1000
	}
	servers := storeServers(t, 3)
	sites := openSites(t, servers[:2], Options{})
	here := sites[0]
	topic, from := here.class(t, History{}).Topic("room"), sites[1].class(t, History{}).Topic("room")
	var at []Pos
	for i := range before {
		pos, err := from.PublishRecord(testnet.Context(t), "", []byte(strconv.Itoa(i)))
		must(t, err)
		at = append(at, pos)
	}
	opened := make(chan *tcpio.Conn, n)
	l, err := tcpio.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0", WriteBuffer: 1 << 20, NewActor: func(*tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			if ev, ok := ev.(tcpio.Opened); ok {
				opened <- ev.Conn
			}
			return nil
		})
	}})
	must(t, err)
	served := make(chan error, 1)
	go func() { served <- l.Serve(context.Background()) }() // until Close
	t.Cleanup(func() { l.Close(); <-served })
	first := func(i int) int { return before - behind - 1 + i%behind } // what the client has got last
	var conns []*tcpio.Conn
	var reading sync.WaitGroup
	for i := range n {
		peer, err := net.Dial("tcp", l.Addr().String())
		must(t, err)
		t.Cleanup(func() { peer.Close() })
		conns = append(conns, testnet.Receive(t, "the connection", opened))
		reading.Go(func() {
			_ = peer.SetReadDeadline(time.Now().Add(3 * testnet.Limit))
			s := bufio.NewScanner(peer)
			for want := first(i) + 1; want < before+during; want++ {
				if !s.Scan() {
					t.Errorf("client %d: %v before %d", i, s.Err(), want)
					return
				}
				if _, text, _ := strings.Cut(s.Text(), " "); text != strconv.Itoa(want) {
					t.Errorf("client %d: got %q, want %d", i, text, want)
					return
				}
			}
		})
	}
	var publishing sync.WaitGroup
	publishing.Go(func() {
		for k := range during {
			if err := from.Publish([]byte(strconv.Itoa(before + k))); err != nil {
				t.Errorf("Publish: %v", err)
			}
			time.Sleep(time.Millisecond) // so that they come while clients resume
		}
	})
	requests := func() uint64 {
		here.requests.mu.Lock()
		defer here.requests.mu.Unlock()
		return here.requests.last
	}
	begin := requests()
	begun := time.Now()
	took := make([]time.Duration, n)
	ctx, cancel := context.WithTimeout(context.Background(), 3*testnet.Limit)
	defer cancel()
	var resuming sync.WaitGroup
	for i, c := range conns {
		resuming.Go(func() {
			whole, err := topic.Resume(ctx, c, nil, at[first(i)], func(rec Record) error {
				_, err := c.Write(positioned(rec))
				return err
			})
			if err != nil || !whole {
				t.Errorf("client %d: whole is %v, %v", i, whole, err)
			}
			took[i] = time.Since(begun)
		})
	}
	resuming.Wait()
	slices.Sort(took)
	made := requests() - begin
	t.Logf("%d have resumed after %v, half of them after %v, by %d requests", n, took[n-1], took[n/2], made)
	if made > asked {
		t.Errorf("the stream was asked %d times", made)
	}
	publishing.Wait()
	reading.Wait()
}
