package main

import (
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/bench/internal/arg"
)

const (
	holdFor     = 50 * time.Millisecond
	sleepFor    = 100 * time.Millisecond
	sleepEvery  = 300 * time.Millisecond
	workFor     = 20 * time.Millisecond
	poolWorkers = 16 // more than there are bad peers: a pool that is full is the program's own bound
)

// misbehaving is a consumer of the stream that does ill to the peers from 127.0.1.0/24:
//
//	none    it does not, for comparison
//	hold    it keeps their Readables for 50 ms before it reads
//	sleep   it sleeps 100 ms when one of them has something to say, three times a second
//	pool    it hands every Readable to a pool of workers, who need 20 ms for one of theirs
//
// The others are on the route under test; with hold and pool that is the same stream.
type misbehaving struct {
	how, route string
	actor      tcpio.Actor
	g          *errgroup.Group
	slept      time.Time
}

func isBad(c *tcpio.Conn) bool {
	a, err := netip.ParseAddrPort(c.RemoteAddr().String())
	return err == nil && a.Addr().As4()[2] == 1
}

func (m *misbehaving) consume(events <-chan tcpio.Event) error {
	buf := make([]byte, bufSize)
	work := make(chan *tcpio.Conn, 1024)
	if m.how == "pool" {
		for range poolWorkers {
			m.g.Go(func() error { return worker(work) })
		}
	}
	type held struct {
		c     *tcpio.Conn
		until time.Time
	}
	var kept []held
	tick := time.NewTicker(holdFor / 5)
	defer tick.Stop()
	for {
		select {
		case ev, ok := <-events:
			switch ev := ev.(type) {
			case tcpio.Opened:
				bad := isBad(ev.Conn)
				ev.Conn.SetData(bad)
				if !bad {
					m.settle(ev.Conn)
				}
			case tcpio.Readable:
				bad := ev.Conn.Data() == true
				switch {
				case m.how == "pool":
					work <- ev.Conn
					continue
				case bad && m.how == "hold":
					kept = append(kept, held{ev.Conn, time.Now().Add(holdFor)})
					continue
				case bad && m.how == "sleep" && time.Since(m.slept) > sleepEvery:
					time.Sleep(sleepFor)
					m.slept = time.Now()
				}
				echo(ev.Conn, buf)
			}
			if !ok {
				close(work)
				return nil
			}
		case now := <-tick.C:
			for len(kept) > 0 && now.After(kept[0].until) {
				echo(kept[0].c, buf)
				kept = kept[1:]
			}
		}
	}
}

// settle gives a good peer to the route under test.
func (m *misbehaving) settle(c *tcpio.Conn) {
	switch m.route {
	case "actor":
		_ = c.Attach(m.actor)
	case "mailbox":
		mailbox := c.Events()
		m.g.Go(func() error { return consume(mailbox, *arg.Buf) })
	}
}

func worker(work <-chan *tcpio.Conn) error {
	buf := make([]byte, bufSize)
	for c := range work {
		if c.Data() == true {
			time.Sleep(workFor)
		}
		echo(c, buf)
	}
	return nil
}
