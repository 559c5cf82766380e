package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"math/big"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/websocket"
)

// A server is one row of the tables.
type server struct {
	name  string
	serve func(addr string, group bool, cert *tls.Certificate) error
	raw   bool // knows no frames: it sends back what it gets
	noTLS bool // its example has none
	ours  bool
}

const floor = "core"

var servers = []server{
	{name: floor, serve: serveCore, raw: true, ours: true},
	{name: "tcpio", serve: serveActor, ours: true},
	{name: "tcpio-stream", serve: serveStream, ours: true},
	{name: "gobwas", serve: serveGobwas, noTLS: true},
	{name: "nbio", serve: serveNbio},
	{name: "gws", serve: serveGws},
	{name: "gorilla", serve: serveGorilla},
	{name: "coder", serve: serveCoder},
}

// serve is the part of the program that is a server. On USR1 it says how many bytes are in use, of
// the heap and of goroutines' stacks, once what is garbage has been collected.
func serve(args []string) error {
	f := flag.NewFlagSet("serve", flag.ExitOnError)
	name := f.String("server", "", "which")
	addr := f.String("addr", "", "to listen on")
	group := f.Bool("group", false, "a message goes to all connections")
	secure := f.Bool("tls", false, "with TLS")
	_ = f.Parse(args)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1)
	go func() {
		for range signals {
			for range 3 { // a pool is empty behind the second
				runtime.GC()
			}
			debug.FreeOSMemory()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			fmt.Println(m.HeapAlloc + m.StackInuse)
		}
	}()
	all, err := pick(servers, *name, func(s server) string { return s.name })
	if err != nil || *name == "" {
		return fmt.Errorf("no server: %w", err)
	}
	var cert *tls.Certificate
	if *secure {
		if cert, err = selfSigned(); err != nil {
			return err
		}
	}
	return all[0].serve(*addr, *group, cert)
}

func selfSigned() (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"bench"}}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

func listenerOptions(addr string, cert *tls.Certificate) *tcpio.ListenerOptions {
	o := &tcpio.ListenerOptions{Addr: addr, Loops: 1}
	if cert != nil {
		o.TLSConfig = &tls.Config{Certificates: []tls.Certificate{*cert}}
	}
	return o
}

// serveCore is tcpio without WebSocket: an actor sends back what it reads. It answers a handshake,
// so that one client serves for all.
func serveCore(addr string, group bool, cert *tls.Certificate) error {
	const answer = "HTTP/1.1 101 Switching Protocols\r\n\r\n"
	var members tcpio.Group
	bufs := sync.Pool{New: func() any { return new([64 << 10]byte) }}
	a := tcpio.ActorFunc(func(ev tcpio.Event) error {
		r, ok := ev.(tcpio.Readable)
		if !ok {
			return nil
		}
		buf := bufs.Get().(*[64 << 10]byte)
		defer bufs.Put(buf)
		n, err := r.Conn.TryRead(buf[:])
		switch {
		case err == tcpio.ErrWouldBlock:
			return nil
		case err != nil:
			return err
		case bytes.HasPrefix(buf[:n], []byte("GET ")):
			if group {
				members.Join(r.Conn)
			}
			_, err = r.Conn.TryWrite([]byte(answer))
		case group:
			_, err = members.Write(buf[:n])
		default:
			_, err = r.Conn.TryWrite(buf[:n])
		}
		return err
	})
	o := listenerOptions(addr, cert)
	o.NewActor = func(*tcpio.Conn) tcpio.Actor { return a }
	l, err := tcpio.Listen(o)
	if err != nil {
		return err
	}
	return l.Serve(context.Background())
}

// room is the group of a WebSocket server of ours: all connections, or those that ask for it.
type room struct {
	all     bool
	members websocket.Group
}

func (r *room) receive(ev websocket.Event) error {
	switch ev := ev.(type) {
	case websocket.Opened:
		if r.all {
			r.members.Join(ev.Conn)
		}
	case websocket.Text: // see attacker.deaf
		if string(ev.Data) == "join" {
			r.members.Join(ev.Conn)
		} else {
			r.members.WriteText(ev.Data)
		}
	case websocket.Binary:
		if r.all {
			r.members.WriteBinary(ev.Data)
			return nil
		}
		return ev.Conn.TryWriteBinary(ev.Data)
	}
	return nil
}

// limits are those that the attacks are made against.
func limits() *websocket.Options {
	return &websocket.Options{Compress: true, CompressMin: 1 << 20, MaxMessage: 16 << 20}
}

func serveActor(addr string, group bool, cert *tls.Certificate) error {
	r := &room{all: group}
	o := limits()
	a := websocket.ActorFunc(r.receive)
	o.NewActor = func(*websocket.Conn) websocket.Actor { return a }
	s, err := websocket.Listen(listenerOptions(addr, cert), o)
	if err != nil {
		return err
	}
	return s.Serve(context.Background())
}

func serveStream(addr string, group bool, cert *tls.Certificate) error {
	r := &room{all: group}
	s, err := websocket.Listen(listenerOptions(addr, cert), limits())
	if err != nil {
		return err
	}
	events := s.Events()
	go func() {
		for ev := range events {
			if err := r.receive(ev); err != nil {
				websocket.ConnOf(ev).Close(websocket.InternalError, "")
			}
		}
	}()
	return s.Serve(context.Background())
}
