//go:build linux

package soak

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// What other goroutines send to the soak's connections: posted values, questions, and what is
// written to groups.

const soakPosters = 3

// A soakValue is the n-th value that a poster has for a connection.
type soakValue struct{ poster, n int }

// post posts values to connections, and asks, until ctx ends.
func (srv *soakServer) post(ctx context.Context) {
	t := srv.soak.t
	n := 0
	for tick := time.NewTicker(5 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
		asked := false
		for c := range srv.l.Conns() {
			if rand.IntN(3) > 0 || srv.tls && c.Data() == nil {
				continue // a connection whose handshake fails gets no event, nor what was posted to it
			}
			n++
			v := soakValue{poster: 0, n: n}
			switch err := c.Post(v); {
			case err == nil:
				srv.soak.posts.Add(1)
			case !errors.Is(err, tcpio.ErrMailboxFull) && !testnet.Benign(err):
				t.Errorf("%s: Post: %v", srv.name, err)
			}
			if asked {
				continue
			}
			asked = true
			v = soakValue{poster: 1, n: n}
			short, cancel := context.WithTimeout(ctx, 20*time.Millisecond) // a handler may be blocked
			switch got, err := c.Ask(short, v); {
			case err == nil && got != any(v):
				t.Errorf("%s: the answer to %v is %v", srv.name, v, got)
			case err != nil && !errors.Is(err, tcpio.ErrMailboxFull) && !testnet.Benign(err) && short.Err() == nil:
				t.Errorf("%s: Ask: %v", srv.name, err)
			}
			cancel()
		}
	}
}

// A soakGroup is one group that numbered records are written to.
type soakGroup struct {
	soak  *soak
	group tcpio.Group
	slow  tcpio.Group
}

// deafWrite is the size of a write to the group of those that do not read.
const deafWrite = 16 << 10

// recordSize is the size of a record: its number, twice.
const recordSize = 16

func (srv *soakServer) groupMembers(o *tcpio.ListenerOptions) func(*tcpio.Listener) {
	g := &srv.soak.group
	g.slow.Slow = tcpio.CloseSlow
	o.NewActor = func(*tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			switch ev := ev.(type) {
			case tcpio.Opened:
				srv.opened.Add(1)
			case tcpio.Readable:
				var b [1]byte
				switch n, err := ev.Conn.TryRead(b[:]); {
				case n == 0 && err != tcpio.ErrWouldBlock:
					ev.Conn.Close()
				case n == 1 && b[0] == 'j':
					g.group.Join(ev.Conn)
				case n == 1 && b[0] == 's':
					g.slow.Join(ev.Conn)
				}
			case tcpio.Closed:
				srv.closed.Add(1)
				if err := ev.Conn.Err(); err != nil && !harmless(err) && !errors.Is(err, tcpio.ErrSlow) {
					srv.soak.t.Errorf("%s: a connection ended with %v", srv.name, err)
				}
			}
			return nil
		})
	}
	return nil
}

// broadcast writes records until ctx ends; to the group of those that do not read, so many that
// they are closed soon.
func (g *soakGroup) broadcast(ctx context.Context, t *testing.T) {
	var block []byte
	for n := uint64(0); ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(2 * time.Millisecond):
		}
		block = block[:0]
		for range 1 + rand.IntN(8) {
			n++
			block = binary.BigEndian.AppendUint64(block, n)
			block = binary.BigEndian.AppendUint64(block, n)
		}
		if m, err := g.group.Write(block); m != len(block) || err != nil {
			t.Errorf("Group.Write = %d, %v", m, err)
		}
		if g.slow.Len() > 0 {
			g.slow.Write(make([]byte, deafWrite))
		}
	}
}
