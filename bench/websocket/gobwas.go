package main

import (
	"crypto/tls"
	"net"
	"sync"
	"syscall"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
	"golang.org/x/sys/unix"
)

// serveGobwas is gobwas/ws as its example, a chat, has it: epoll with one shot for each event,
// whose work goes to a pool of goroutines, which read a message and write by the library's blocking
// functions. The example's pool has 128 goroutines, and its answers go out through a buffer.
func serveGobwas(addr string, group bool, _ *tls.Certificate) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	g := &gobwas{ep: ep, group: group, work: make(chan func())}
	for range 128 {
		go func() {
			for f := range g.work {
				f()
			}
		}()
	}
	go g.poll()
	for {
		nc, err := ln.Accept()
		if err != nil {
			return err
		}
		g.work <- func() { g.open(nc) }
	}
}

type gobwas struct {
	ep    int
	group bool
	work  chan func()
	conns sync.Map // by descriptor
	room  members[*gobwasConn]
}

type gobwasConn struct {
	net.Conn
	fd      int
	writing sync.Mutex
}

func (g *gobwas) open(nc net.Conn) {
	if _, err := ws.Upgrade(nc); err != nil {
		nc.Close()
		return
	}
	raw, err := nc.(syscall.Conn).SyscallConn()
	if err != nil {
		nc.Close()
		return
	}
	c := &gobwasConn{Conn: nc}
	_ = raw.Control(func(fd uintptr) { c.fd = int(fd) })
	if g.group {
		g.room.join(c)
	}
	g.conns.Store(c.fd, c)
	g.arm(c, unix.EPOLL_CTL_ADD)
}

func (g *gobwas) arm(c *gobwasConn, op int) {
	_ = unix.EpollCtl(g.ep, op, c.fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: int32(c.fd)})
}

func (g *gobwas) poll() {
	events := make([]unix.EpollEvent, 1024)
	for {
		n, err := unix.EpollWait(g.ep, events, -1)
		if err != nil && err != unix.EINTR {
			must(err)
		}
		for _, ev := range events[:max(n, 0)] {
			if c, ok := g.conns.Load(int(ev.Fd)); ok {
				g.work <- func() { g.receive(c.(*gobwasConn)) }
			}
		}
	}
}

func (g *gobwas) receive(c *gobwasConn) {
	p, op, err := wsutil.ReadClientData(c)
	switch {
	case err != nil:
	case g.group:
		g.room.each(func(to *gobwasConn) { _ = to.write(op, p) })
	default:
		err = c.write(op, p)
	}
	if err != nil {
		g.conns.Delete(c.fd)
		c.Close()
		return
	}
	g.arm(c, unix.EPOLL_CTL_MOD)
}

func (c *gobwasConn) write(op ws.OpCode, p []byte) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	w := wsutil.GetWriter(c, ws.StateServerSide, op, 32<<10)
	defer wsutil.PutWriter(w)
	if _, err := w.Write(p); err != nil {
		return err
	}
	return w.Flush()
}
