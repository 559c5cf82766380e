//go:build linux

package relay

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// How a peer of a random pair ends.
const (
	actFIN    = iota // ends its stream, and reads to the other's end
	actReset         // resets at some moment
	actClose         // closes at some moment, with or without unread input
	actSilent        // stops reading, or writing, and stays
	actVanish        // goes without a FIN or a reset
	acts
)

var actNames = [...]string{"FIN", "reset", "close", "silent", "vanish"}

// A script is what a peer does.
type script struct {
	act   int
	sends int // bytes, before act
	reads int // bytes, before a silent peer stops; -1: all
	pause time.Duration
}

func randomScript(rng *rand.Rand) script {
	sizes := []int{0, 1, 100, 4096, 64 << 10, 64<<10 + 1, 200_000, 1 << 20}
	s := script{act: actFIN, sends: sizes[rng.IntN(len(sizes))], reads: -1}
	if rng.IntN(2) == 0 {
		s.act = rng.IntN(acts)
	}
	if s.sends > 2 {
		s.sends -= rng.IntN(s.sends / 2)
	}
	if s.act == actSilent {
		s.reads = rng.IntN(300_000)
	}
	if rng.IntN(3) == 0 {
		s.pause = time.Duration(rng.IntN(3000)) * time.Microsecond
	}
	return s
}

// A talker is a peer's end: a *net.TCPConn, or a *tls.Conn on one.
type talker interface {
	net.Conn
	CloseWrite() error
}

// A walker is a peer that does what its script says.
type walker struct {
	script
	peer   talker
	tcp    *net.TCPConn // below it
	seed   uint64
	sent   atomic.Int64 // bytes that the kernel took
	got    int
	err    error // why reading ended
	failed bool  // writing has, or the end of that
	bad    error // what is wrong
}

// walk runs the script. It returns when the peer is through: a silent one with the relay.
func (w *walker) walk(over <-chan struct{}) {
	var reading sync.WaitGroup
	reading.Go(w.read)
	w.write()
	switch w.act {
	case actFIN:
		if w.peer.CloseWrite() != nil {
			w.failed = true
		}
		reading.Wait()
	case actReset:
		_ = w.tcp.SetLinger(0)
		_ = w.tcp.Close()
	case actClose:
		if w.peer.Close() != nil { // of TLS: its close_notify
			w.failed = true
		}
	case actSilent:
		<-over
	case actVanish:
		if raw, err := w.tcp.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_TCP, unix.TCP_REPAIR, 1) })
		}
		_ = w.tcp.Close()
	}
	if w.act == actSilent {
		_ = w.peer.SetReadDeadline(time.Now())
	}
	reading.Wait()
	if w.err == io.EOF && w.failed {
		w.err = unix.ECONNRESET // the kernel has told the writer, and tells it once
	}
	_ = w.peer.Close()
}

func (w *walker) write() {
	rng := rand.New(rand.NewPCG(w.seed, 1))
	var f flow
	for f.at < w.sends {
		n, err := w.peer.Write(f.next(min(w.sends-f.at, 1+rng.IntN(100<<10))))
		w.sent.Add(int64(n))
		if err != nil {
			w.failed = true
			return
		}
		time.Sleep(w.pause)
	}
}

func (w *walker) read() {
	rng := rand.New(rand.NewPCG(w.seed, 2))
	var f flow
	p := make([]byte, 64<<10)
	for w.reads < 0 || w.got < w.reads {
		n, err := w.peer.Read(p[:1+rng.IntN(len(p))])
		if bad := f.check(p[:n]); bad != nil {
			w.bad = bad
		}
		if w.got += n; err != nil {
			w.err = err
			return
		}
		time.Sleep(w.pause / 2)
	}
}

// check says what is wrong with what w saw of other.
func (w *walker) check(other *walker) error {
	sent := int(other.sent.Load())
	switch {
	case w.bad != nil:
		return w.bad
	case w.got > sent:
		return fmt.Errorf("%d bytes arrived of %d", w.got, sent)
	case w.err == io.EOF && w.got != other.sends:
		return fmt.Errorf("an end of stream behind %d bytes of %d", w.got, other.sends)
	case w.err == io.EOF && other.act != actFIN && other.act != actClose:
		return errors.New("an end of stream that nobody sent")
	case w.act == actFIN && other.act == actFIN && w.err != io.EOF:
		return fmt.Errorf("the end of a stream came as %v, behind %d bytes of %d", w.err, w.got, other.sends)
	case errors.Is(w.err, os.ErrDeadlineExceeded) && w.act != actSilent:
		return errors.New("nothing happens")
	}
	return nil
}

// Peers end in every way at every moment, and the user's code too. Every byte that arrives is the
// one that was sent, an end of stream only comes where one was sent, every relay ends, and nothing
// is left of it.
func TestPairsAtRandom(t *testing.T) {
	pairs, most := 600, 60*time.Second
	if testnet.Long {
		pairs, most = 10_000, 90*time.Second
	}
	sides := []*side{
		serve(t, "stream", tcpio.ListenerOptions{Loops: 2, EventBuffer: 4096}),
		serve(t, "actor", tcpio.ListenerOptions{Loops: 2}),
		serve(t, "none", tcpio.ListenerOptions{}),
		serve(t, "stream", tcpio.ListenerOptions{Loops: 2, EventBuffer: 4096, TLSConfig: testnet.ServerTLS()}),
		serve(t, "none", tcpio.ListenerOptions{TLSConfig: testnet.ServerTLS()}),
	}
	sealed := sides[3:]
	start := time.Now()
	var done atomic.Int64
	var kinds [acts][acts]atomic.Int64
	var workers sync.WaitGroup
	// One at a time connects, so that it knows which connection is its peer's.
	var connecting sync.Mutex
	for range 100 {
		workers.Go(func() {
			for done.Add(1) <= int64(pairs) && time.Since(start) < most && !t.Failed() {
				seed := rand.Uint64()
				rng := rand.New(rand.NewPCG(seed, 0))
				connecting.Lock()
				var conns [2]*tcpio.Conn
				var walkers [2]*walker
				for i := range walkers {
					s := sides[rng.IntN(len(sides))]
					walkers[i] = &walker{script: randomScript(rng), seed: seed + uint64(i)}
					walkers[i].tcp, walkers[i].peer, conns[i] = s.random(t, slices.Contains(sealed, s))
				}
				connecting.Unlock()
				if conns[0] == nil || conns[1] == nil {
					return
				}
				c, to, one, two := conns[0], conns[1], walkers[0], walkers[1]
				if err := randomPair(rng, c, to, one, two); err != nil {
					t.Errorf("seed %d: %+v and %+v: %v", seed, one.script, two.script, err)
				}
				kinds[one.act][two.act].Add(1)
			}
		})
	}
	workers.Wait()
	made := int64(0)
	for i := range kinds {
		for j := range kinds[i] {
			made += kinds[i][j].Load()
		}
	}
	t.Logf("%d pairs in %v", made, time.Since(start).Round(time.Millisecond))
	for i := range kinds {
		for j := range kinds[i] {
			// One pair in a hundred is of a rare kind: among so many none is missing by chance.
			if n := kinds[i][j].Load(); n == 0 && made > 3000 {
				t.Errorf("no pair of %s and %s", actNames[i], actNames[j])
			}
		}
	}
	for _, s := range sides {
		testnet.WaitFor(t, "the end of all connections", func() bool { return s.l.Len() == 0 })
		if st := s.l.Stats(); st.Buffered != 0 {
			t.Errorf("%d bytes are buffered for nobody", st.Buffered)
		}
	}
}

// random connects a peer; the caller is alone.
func (s *side) random(t *testing.T, sealed bool) (*net.TCPConn, talker, *tcpio.Conn) {
	nc, err := net.DialTimeout("tcp", s.l.Addr().String(), testnet.Limit)
	if err != nil {
		t.Errorf("dial: %v", err)
		return nil, nil, nil
	}
	_ = nc.SetDeadline(time.Now().Add(testnet.Limit))
	tcp := nc.(*net.TCPConn)
	var peer talker = tcp
	if sealed {
		tc := tls.Client(tcp, testnet.ClientTLS())
		if err := tc.Handshake(); err != nil {
			t.Errorf("handshake: %v", err)
			return nil, nil, nil
		}
		peer = tc
	}
	select {
	case c := <-s.opened:
		return tcp, peer, c
	case <-time.After(testnet.Limit):
		t.Error("no connection")
		return nil, nil, nil
	}
}

func randomPair(rng *rand.Rand, c, to *tcpio.Conn, one, two *walker) error {
	o := new(tcpio.RelayOptions)
	calm := one.act != actSilent && one.act != actVanish && two.act != actSilent && two.act != actVanish
	if !calm {
		o.IdleTimeout = 700 * time.Millisecond // what ends it
	}
	over := make(chan struct{})
	var walkers sync.WaitGroup
	early := rng.IntN(2) == 0 // the relay comes when the peers have begun
	begin := func() {
		for _, w := range []*walker{one, two} {
			walkers.Go(func() { w.walk(over) })
		}
	}
	if early {
		begin()
		time.Sleep(time.Duration(rng.IntN(2000)) * time.Microsecond)
	}
	r, err := c.Relay(to, o)
	if err != nil {
		c.Abort()
		to.Abort()
		close(over)
		walkers.Wait()
		if early && errors.Is(err, net.ErrClosed) {
			return nil // a peer was faster
		}
		return err
	}
	if !early {
		begin()
	}
	disturbed := rng.IntN(10) == 0
	if disturbed {
		time.Sleep(time.Duration(rng.IntN(5000)) * time.Microsecond)
		one := []func() error{c.Close, c.Abort, to.Close, to.Abort}[rng.IntN(4)]
		_ = one()
	}
	select {
	case <-r.Done():
	case <-time.After(testnet.Limit):
		err = fmt.Errorf("the relay does not end; %+v", r)
		c.Abort()
	}
	close(over)
	walkers.Wait()
	if err != nil {
		return err
	}
	end, _ := r.End()
	if !disturbed && one.act == actFIN && two.act == actFIN {
		if out, in := r.Passed(); end.Err != nil || int(out) != one.sends || int(in) != two.sends {
			return fmt.Errorf("the end is %+v behind %d and %d bytes", end, out, in)
		}
	}
	if disturbed {
		if one.act == actFIN && one.err != io.EOF || two.act == actFIN && two.err != io.EOF {
			one.act, two.act = actReset, actReset // it may have been cut
			return errors.Join(one.bad, two.bad)
		}
	}
	if err := errors.Join(one.check(two), two.check(one)); err != nil {
		return fmt.Errorf("%T and %T, early: %v, the end is %+v: %w", one.peer, two.peer, early, end, err)
	}
	return nil
}
