//go:build linux

package websocket

import (
	"context"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/rabbit-backend/tcpio"
)

// coreServer runs an actor of tcpio's that answers each read with reply.
func coreServer(b *testing.B, opened func(*tcpio.Conn), reply []byte) *tcpio.Listener {
	l, err := tcpio.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0", NewActor: func(*tcpio.Conn) tcpio.Actor {
		buf := make([]byte, 64<<10)
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			switch ev := ev.(type) {
			case tcpio.Opened:
				if opened != nil {
					opened(ev.Conn)
				}
			case tcpio.Readable:
				if _, err := ev.Conn.TryRead(buf); err == nil && reply != nil {
					ev.Conn.TryWrite(reply)
				}
			}
			return nil
		})
	}})
	if err != nil {
		b.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- l.Serve(context.Background()) }()
	b.Cleanup(func() { l.Close(); <-ended })
	return l
}

func pingPong(b *testing.B, nc net.Conn, frame []byte, answer int) {
	buf := make([]byte, answer)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := nc.Write(frame); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(nc, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// The echo of a message, and of as many bytes by an actor of tcpio's.
func BenchmarkEcho(b *testing.B) {
	for _, size := range []int{64, 16 << 10} {
		frame := fr(opBinary, string(make([]byte, size)))
		answer := len(frame) - 4
		b.Run(fmt.Sprint("tcpio/", size), func(b *testing.B) {
			l := coreServer(b, nil, make([]byte, answer))
			pingPong(b, dialRaw(b, l.Addr()), frame, answer)
		})
		b.Run(fmt.Sprint("websocket/", size), func(b *testing.B) {
			s := start(b, tcpio.ListenerOptions{}, Options{NewActor: echoActor}, nil)
			pingPong(b, dialPeer(b, s, ""), frame, answer)
		})
	}
}

// A group's write to a thousand members, and as many bytes by a tcpio.Group.
func BenchmarkGroup(b *testing.B) {
	const members, size = 1000, 64
	drain := func(nc net.Conn) { go io.Copy(io.Discard, nc) }
	b.Run("tcpio", func(b *testing.B) {
		var g tcpio.Group
		l := coreServer(b, g.Join, nil)
		for range members {
			drain(dialRaw(b, l.Addr()).Conn)
		}
		waitFor(b, func() bool { return g.Len() == members })
		p := make([]byte, size+2)
		b.ReportAllocs()
		for b.Loop() {
			g.Write(p)
		}
	})
	b.Run("websocket", func(b *testing.B) {
		var g Group
		s := start(b, tcpio.ListenerOptions{}, Options{NewActor: func(c *Conn) Actor { g.Join(c); return ActorFunc(echo) }}, nil)
		for range members {
			drain(dialPeer(b, s, "").Conn)
		}
		waitFor(b, func() bool { return g.Len() == members })
		p := make([]byte, size)
		b.ReportAllocs()
		for b.Loop() {
			g.WriteBinary(p)
		}
	})
}
