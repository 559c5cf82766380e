//go:build linux

package soak

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// A soakKind is a sort of client.
type soakKind struct {
	name string
	run  func(*soakClient, *net.TCPConn) error
}

var (
	kindWhole      = &soakKind{"whole", (*soakClient).whole}
	kindHalfClose  = &soakKind{"half-close", (*soakClient).halfClose}
	kindReset      = &soakKind{"reset", (*soakClient).reset}
	kindSlowReader = &soakKind{"slow reader", (*soakClient).slowReader}
	kindSlowWriter = &soakKind{"slow writer", (*soakClient).slowWriter}
	// A staller writes until it is held back, and only then begins to read: all of it must still be
	// there.
	kindStaller     = &soakKind{"staller", (*soakClient).staller}
	kindNeverReader = &soakKind{"never-reader", (*soakClient).neverReader}
	kindQuitter     = &soakKind{"quitter", (*soakClient).quitter}

	kindPlainText        = &soakKind{"plain text", (*soakClient).plainText}
	kindHandshakeQuitter = &soakKind{"handshake quitter", (*soakClient).handshakeQuitter}
	kindStartTLS         = &soakKind{"StartTLS", (*soakClient).startTLS}
	kindRefused          = &soakKind{"refused or not", (*soakClient).refused}
	kindMember           = &soakKind{"member", (*soakClient).member}
	kindDeafMember       = &soakKind{"deaf member", (*soakClient).deafMember}
)

// A soakClient is one connection's.
type soakClient struct {
	soak *soak
	srv  *soakServer
	rng  *rand.Rand // of the goroutine that runs the client
	seed uint64     // of this connection's bytes
}

func (c *soakClient) run(kind *soakKind) error {
	nc, err := net.DialTimeout("tcp", c.srv.l.Addr().String(), soakPatience)
	if err != nil {
		return err
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(2 * soakPatience))
	if c.rng.IntN(2) == 0 {
		nc.(*net.TCPConn).SetReadBuffer(64 << 10)
	}
	return kind.run(c, nc.(*net.TCPConn))
}

// duplex is a connection that can be closed in one direction: plain or TLS.
type duplex interface {
	net.Conn
	CloseWrite() error
}

// secured is nc, behind a handshake where the server wants one.
func (c *soakClient) secured(nc *net.TCPConn) (duplex, error) {
	if !c.srv.tls {
		return nc, nil
	}
	return c.handshake(nc)
}

func (c *soakClient) handshake(nc net.Conn) (duplex, error) {
	tc := tls.Client(nc, testnet.ClientTLS())
	if err := tc.Handshake(); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	return tc, nil
}

// payload is up to most bytes of this connection's own, small ones more often than big ones; lines
// where the server wants lines.
func (c *soakClient) payload(most int) []byte {
	size := 1 << c.rng.IntN(21)
	size = min(size+c.rng.IntN(size), most)
	p := make([]byte, (size+7)&^7)
	own := rand.New(rand.NewPCG(c.seed, 0))
	for i := 0; i < len(p); i += 8 {
		binary.NativeEndian.PutUint64(p[i:], own.Uint64())
	}
	p = p[:size]
	if c.srv.lines {
		for i := range p {
			if p[i] == 0 {
				p[i] = '\n'
			} else {
				p[i] = 'a' + p[i]%26
			}
		}
		p[size-1] = '\n'
	}
	return p
}

// pace is how one side of a conversation moves its bytes.
type pace struct {
	most  int // bytes at a time
	pause time.Duration
	every int // one pause in so many steps
}

// write sends p, in pieces.
func (s pace) write(w io.Writer, p []byte, rng *rand.Rand) error {
	for i := 1; len(p) > 0; i++ {
		n := min(1+rng.IntN(s.most), len(p))
		if _, err := w.Write(p[:n]); err != nil {
			return fmt.Errorf("write, %d bytes left: %w", len(p), err)
		}
		p = p[n:]
		s.rest(i)
	}
	return nil
}

// read expects want.
func (s pace) read(c *soakClient, r io.Reader, want []byte, rng *rand.Rand) error {
	buf := make([]byte, s.most)
	for i, got := 1, 0; got < len(want); i++ {
		n, err := r.Read(buf[:min(1+rng.IntN(s.most), len(want)-got)])
		if j := testnet.FirstDifference(buf[:n], want[got:got+n]); j >= 0 {
			return fmt.Errorf("byte %d of %d is not what was sent", got+j, len(want))
		}
		got += n
		c.soak.bytes.Add(int64(n))
		if err != nil && got < len(want) {
			return fmt.Errorf("read, %d of %d bytes: %w", got, len(want), err)
		}
		s.rest(i)
	}
	return nil
}

func (s pace) rest(i int) {
	if s.pause > 0 && i%s.every == 0 {
		time.Sleep(s.pause) // the load's shape; nothing waits for it
	}
}

var fast = pace{most: 32 << 10}

// talk sends p and expects it back, both at once.
func (c *soakClient) talk(d duplex, p []byte, out, in pace, halfClose bool) error {
	var g errgroup.Group
	wrng, rrng := rand.New(rand.NewPCG(c.seed, 1)), rand.New(rand.NewPCG(c.seed, 2))
	g.Go(func() error {
		err := out.write(d, p, wrng)
		if err == nil && halfClose {
			err = d.CloseWrite()
		}
		return err
	})
	g.Go(func() error { return in.read(c, d, p, rrng) })
	return g.Wait()
}

// end expects the orderly end, and nothing before it.
func (c *soakClient) end(d duplex) error {
	n, err := d.Read(make([]byte, 100))
	if n != 0 || err != io.EOF {
		return fmt.Errorf("%d bytes, %v, behind the last one, want the end of stream", n, err)
	}
	return nil
}

func (c *soakClient) converse(nc *net.TCPConn, most int, out, in pace, halfClose bool) error {
	d, err := c.secured(nc)
	if err != nil {
		return err
	}
	if err := c.talk(d, c.payload(most), out, in, halfClose); err != nil {
		return err
	}
	if halfClose {
		return c.end(d)
	}
	return d.Close()
}

func (c *soakClient) whole(nc *net.TCPConn) error {
	return c.converse(nc, 1<<20, fast, fast, false)
}

func (c *soakClient) halfClose(nc *net.TCPConn) error {
	return c.converse(nc, 1<<20, fast, fast, true)
}

func (c *soakClient) slowReader(nc *net.TCPConn) error {
	return c.converse(nc, 256<<10, fast, pace{most: 16 << 10, pause: 5 * time.Millisecond, every: 2}, true)
}

func (c *soakClient) slowWriter(nc *net.TCPConn) error {
	return c.converse(nc, 300, pace{most: 3, pause: time.Millisecond, every: 1}, fast, true)
}

// reset reads a part, and has had enough.
func (c *soakClient) reset(nc *net.TCPConn) error {
	d, err := c.secured(nc)
	if err != nil {
		return err
	}
	p := c.payload(256 << 10)
	var g errgroup.Group
	wrng := rand.New(rand.NewPCG(c.seed, 1))
	g.Go(func() error {
		_ = fast.write(d, p, wrng) // it fails when the other one has reset the connection
		return nil
	})
	err = fast.read(c, d, p[:c.rng.IntN(len(p)+1)], c.rng)
	nc.SetLinger(0)
	nc.Close()
	g.Wait()
	return err
}

// staller does not read until its writing is held back.
func (c *soakClient) staller(nc *net.TCPConn) error {
	d, err := c.secured(nc)
	if err != nil {
		return err
	}
	p := c.payload(1 << 20)
	held := make(chan struct{})
	var g errgroup.Group
	g.Go(func() error {
		time.AfterFunc(50*time.Millisecond, func() { close(held) })
		err := fast.write(d, p, rand.New(rand.NewPCG(c.seed, 1)))
		if err == nil {
			err = d.CloseWrite()
		}
		return err
	})
	<-held
	if err := fast.read(c, d, p, c.rng); err != nil {
		return err
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return c.end(d)
}

// neverReader writes for a while, and goes.
func (c *soakClient) neverReader(nc *net.TCPConn) error {
	d, err := c.secured(nc)
	if err != nil {
		return err
	}
	nc.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	p := c.payload(1 << 20)
	for range 8 {
		if err := fast.write(d, p, c.rng); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				return err
			}
			break
		}
	}
	if c.rng.IntN(2) == 0 {
		nc.SetLinger(0)
	}
	return nc.Close()
}

// quitter goes at once, or behind a few bytes.
func (c *soakClient) quitter(nc *net.TCPConn) error {
	if n := c.rng.IntN(3); n > 0 && !c.srv.tls {
		if _, err := nc.Write(c.payload(100)[:1]); err != nil {
			return err
		}
	}
	if c.rng.IntN(2) == 0 {
		nc.SetLinger(0)
	}
	return nc.Close()
}

// plainText speaks no TLS, and expects the alert that says so.
func (c *soakClient) plainText(nc *net.TCPConn) error {
	if _, err := io.WriteString(nc, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		return err
	}
	got, err := io.ReadAll(nc)
	if want := []byte{21, 3, 1, 0, 2, 2, 10}; err != nil || !bytes.Equal(got, want) {
		return fmt.Errorf("plain text was answered with % x, %v, want the alert % x", got, err, want)
	}
	return nil
}

// handshakeQuitter goes in the middle of its handshake.
func (c *soakClient) handshakeQuitter(nc *net.TCPConn) error {
	cut := &cutConn{TCPConn: nc, left: 1 + c.rng.IntN(600)}
	_ = tls.Client(cut, testnet.ClientTLS()).Handshake() // it may have done with less
	if c.rng.IntN(2) == 0 {
		nc.SetLinger(0)
	}
	return nc.Close()
}

// cutConn takes so many bytes and no more.
type cutConn struct {
	*net.TCPConn
	left int
}

var errCut = errors.New("enough")

func (c *cutConn) Write(p []byte) (int, error) {
	n, err := c.TCPConn.Write(p[:min(len(p), c.left)])
	if c.left -= n; err == nil && n < len(p) {
		err = errCut
	}
	return n, err
}

// startTLS says a few lines in plain text, and the rest in TLS.
func (c *soakClient) startTLS(nc *net.TCPConn) error {
	if err := c.talk(nc, c.payload(2000), fast, fast, false); err != nil {
		return err
	}
	if _, err := io.WriteString(nc, startTLSLine); err != nil {
		return err
	}
	reply := make([]byte, len(startTLSReply))
	if _, err := io.ReadFull(nc, reply); err != nil || string(reply) != startTLSReply {
		return fmt.Errorf("the reply to STARTTLS is %q, %v", reply, err)
	}
	d, err := c.handshake(nc)
	if err != nil {
		return err
	}
	if err := c.talk(d, c.payload(256<<10), fast, fast, true); err != nil {
		return err
	}
	return c.end(d)
}

// refused is served, or gets a refusal.
func (c *soakClient) refused(nc *net.TCPConn) error {
	p := append([]byte{0}, c.payload(4<<10)...) // no reply begins with a zero
	if _, err := nc.Write(p); err != nil {
		return err
	}
	first := make([]byte, 1)
	if _, err := io.ReadFull(nc, first); err != nil {
		return err
	}
	want, rest := p, error(nil)
	if first[0] != 0 {
		want = []byte(refusal)
	} else {
		rest = nc.CloseWrite()
	}
	got, err := io.ReadAll(nc)
	if got = append(first, got...); rest != nil || err != nil || !bytes.Equal(got, want) {
		return fmt.Errorf("%d bytes, %.30q, want %d, %.30q: %v, %v", len(got), got, len(want), want, rest, err)
	}
	return nil
}

// member reads records for a while: none may be missing.
func (c *soakClient) member(nc *net.TCPConn) error {
	if _, err := nc.Write([]byte("j")); err != nil {
		return err
	}
	var b [recordSize]byte
	last := uint64(0)
	for range 1 + c.rng.IntN(500) {
		if _, err := io.ReadFull(nc, b[:]); err != nil {
			return fmt.Errorf("behind record %d: %w", last, err)
		}
		n, again := binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint64(b[8:])
		if n != again || last != 0 && n != last+1 {
			return fmt.Errorf("record %d, %d behind %d", n, again, last)
		}
		last = n
		c.soak.records.Add(1)
	}
	if c.rng.IntN(2) == 0 {
		nc.SetLinger(0)
	}
	return nc.Close()
}

// deafMember does not read until it has been closed for that, or for long enough. It has got whole
// writes.
func (c *soakClient) deafMember(nc *net.TCPConn) error {
	nc.SetReadBuffer(64 << 10)
	if _, err := nc.Write([]byte("s")); err != nil {
		return err
	}
	time.Sleep(time.Duration(100+c.rng.IntN(400)) * time.Millisecond) // it is slow, that is all
	nc.SetReadDeadline(time.Now().Add(2 * time.Second))
	n, err := io.Copy(io.Discard, nc)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded): // it has kept up
	case err != nil:
		return fmt.Errorf("behind %d bytes: %w", n, err)
	case n == 0 || n%deafWrite != 0:
		return fmt.Errorf("closed behind %d bytes, want whole writes of %d", n, deafWrite)
	default:
		c.soak.slow.Add(1)
	}
	nc.SetLinger(0)
	return nc.Close()
}
