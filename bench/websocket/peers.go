package main

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"sync"

	coder "github.com/coder/websocket"
	gorilla "github.com/gorilla/websocket"
	nbtls "github.com/lesismal/llib/std/crypto/tls"
	"github.com/lesismal/nbio/logging"
	"github.com/lesismal/nbio/nbhttp"
	nbws "github.com/lesismal/nbio/nbhttp/websocket"
	"github.com/lxzan/gws"
)

// Each library is used as its own documentation has it, by an http.Server where that is its way.

// listenHTTP serves h.
func listenHTTP(addr string, cert *tls.Certificate, h http.HandlerFunc) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	if cert != nil {
		ln = tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{*cert}})
	}
	s := &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0)} // clients hang up
	return s.Serve(ln)
}

// A members is the connections that a message goes to.
type members[T comparable] struct {
	mu  sync.Mutex
	all map[T]bool
}

func (m *members[T]) join(c T) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.all == nil {
		m.all = make(map[T]bool)
	}
	m.all[c] = true
}

func (m *members[T]) each(f func(T)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for c := range m.all {
		f(c)
	}
}

// serveCoder reads by Read in the handler's goroutine.
func serveCoder(addr string, group bool, cert *tls.Certificate) error {
	var room members[*coder.Conn]
	return listenHTTP(addr, cert, func(w http.ResponseWriter, r *http.Request) {
		c, err := coder.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		ctx := context.Background()
		if group {
			room.join(c)
		}
		for {
			kind, p, err := c.Read(ctx)
			if err != nil {
				return
			}
			if group {
				room.each(func(c *coder.Conn) { _ = c.Write(ctx, kind, p) })
			} else if c.Write(ctx, kind, p) != nil {
				return
			}
		}
	})
}

// serveGorilla has a pool for its write buffers, as is advised for many connections.
func serveGorilla(addr string, group bool, cert *tls.Certificate) error {
	var room members[*gorilla.Conn]
	up := gorilla.Upgrader{WriteBufferPool: new(sync.Pool)}
	return listenHTTP(addr, cert, func(w http.ResponseWriter, r *http.Request) {
		c, err := up.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		if group {
			room.join(c)
		}
		for {
			kind, p, err := c.ReadMessage()
			if err != nil {
				return
			}
			if group {
				m, err := gorilla.NewPreparedMessage(kind, p)
				if err != nil {
					return
				}
				room.each(func(c *gorilla.Conn) { _ = c.WritePreparedMessage(m) })
			} else if c.WriteMessage(kind, p) != nil {
				return
			}
		}
	})
}

type gwsHandler struct {
	gws.BuiltinEventHandler
	group bool
	room  members[*gws.Conn]
}

func (h *gwsHandler) OnOpen(c *gws.Conn) {
	if h.group {
		h.room.join(c)
	}
}

func (h *gwsHandler) OnMessage(c *gws.Conn, m *gws.Message) {
	defer m.Close()
	if !h.group {
		_ = c.WriteMessage(m.Opcode, m.Bytes())
		return
	}
	b := gws.NewBroadcaster(m.Opcode, m.Bytes())
	h.room.each(func(c *gws.Conn) { _ = b.Broadcast(c) })
	_ = b.Close()
}

// serveGws has a goroutine of its own for each connection, so that the handler's memory is free.
func serveGws(addr string, group bool, cert *tls.Certificate) error {
	up := gws.NewUpgrader(&gwsHandler{group: group}, &gws.ServerOption{})
	return listenHTTP(addr, cert, func(w http.ResponseWriter, r *http.Request) {
		if c, err := up.Upgrade(w, r); err == nil {
			go c.ReadLoop()
		}
	})
}

// serveNbio is nbio's own HTTP server, whose connections have no goroutine. Its TLS is a fork of
// crypto/tls.
func serveNbio(addr string, group bool, cert *tls.Certificate) error {
	var room members[*nbws.Conn]
	up := nbws.NewUpgrader()
	up.OnOpen(func(c *nbws.Conn) {
		if group {
			room.join(c)
		}
	})
	up.OnMessage(func(c *nbws.Conn, kind nbws.MessageType, p []byte) {
		if group {
			room.each(func(c *nbws.Conn) { _ = c.WriteMessage(kind, p) })
		} else {
			_ = c.WriteMessage(kind, p)
		}
	})
	logging.SetLevel(logging.LevelNone) // it would go to standard output
	conf := nbhttp.Config{
		Network: "tcp", NPoller: 1, MaxLoad: 1 << 20, MaxWriteBufferSize: 64 << 20, ReleaseWebsocketPayload: true,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = up.Upgrade(w, r, nil) }),
	}
	if cert != nil {
		conf.AddrsTLS = []string{addr}
		conf.TLSConfig = &nbtls.Config{Certificates: []nbtls.Certificate{{Certificate: cert.Certificate, PrivateKey: cert.PrivateKey}}}
	} else {
		conf.Addrs = []string{addr}
	}
	e := nbhttp.NewEngine(conf)
	if err := e.Start(); err != nil {
		return err
	}
	select {}
}
