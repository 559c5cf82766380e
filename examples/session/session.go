package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/rabbit-backend/tcpio"
)

const (
	maxLine = 200 // bytes
	maxName = 20  // characters
)

// An auction knows the highest bid. The channel is closed when there is a higher one, and a new one takes its place: so
// any number of sessions wait for it in their selects, and none can hold up the others.
type auction struct {
	mu sync.Mutex
	// Guarded by mu.
	best   bid
	higher chan struct{}
}

type bid struct {
	name   string
	amount int
}

func (b bid) String() string {
	if b.name == "" {
		return "no bid yet\n"
	}
	return fmt.Sprintf("best: %d by %s\n", b.amount, b.name)
}

func newAuction() *auction { return &auction{higher: make(chan struct{})} }

// look returns the highest bid and the channel that is closed when it no longer is.
func (a *auction) look() (bid, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.best, a.higher
}

// offer reports whether b is the highest now.
func (a *auction) offer(b bid) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if b.amount <= a.best.amount {
		return false
	}
	a.best = b
	close(a.higher)
	a.higher = make(chan struct{})
	return true
}

// A session is owned by its goroutine: no field needs a lock.
type session struct {
	conn    *tcpio.Conn
	mailbox <-chan tcpio.Event
	auction *auction
	name    string
}

// run is the session's life. It ends when the mailbox is closed, which is behind the connection's Closed.
func (s *session) run(every time.Duration) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	s.say("who are you? say: name NAME\n")
	_, higher := s.auction.look()
	for {
		select {
		case ev, ok := <-s.mailbox:
			if !ok {
				return nil
			}
			switch ev.(type) {
			case tcpio.Readable:
				s.read()
			case tcpio.Draining:
				s.say("the house closes\n")
				s.conn.Close()
			}
		case <-tick.C:
			if s.name != "" {
				best, _ := s.auction.look()
				s.say(best.String())
			}
		case <-higher:
			var best bid
			best, higher = s.auction.look()
			if s.name != "" && s.name != best.name {
				s.say(best.String())
			}
		}
	}
}

// read takes every whole line there is.
func (s *session) read() {
	for line, err := range s.conn.Frames(bufio.ScanLines) {
		switch {
		case errors.Is(err, bufio.ErrTooLong):
			return // the library closes
		case err != nil: // io.EOF, or the connection has failed
			s.conn.Close()
			return
		}
		if !s.command(string(line)) {
			s.conn.Close()
			return
		}
	}
}

// command reports false when the session is to end.
func (s *session) command(line string) bool {
	verb, arg, _ := strings.Cut(strings.TrimSpace(line), " ")
	arg = strings.TrimSpace(arg)
	switch {
	case verb == "quit":
		s.say("bye\n")
		return false
	case verb == "":
	case verb == "name":
		if !plain(arg) {
			s.say("a name is 1 to 20 letters and digits\n")
			break
		}
		s.name = arg
		best, _ := s.auction.look()
		s.say("welcome, " + arg + "\n" + best.String())
	case s.name == "":
		s.say("first say: name NAME\n")
	case verb == "best":
		best, _ := s.auction.look()
		s.say(best.String())
	case verb == "bid":
		amount, err := strconv.Atoi(arg)
		if err != nil || amount <= 0 {
			s.say("bid what?\n")
		} else if s.auction.offer(bid{s.name, amount}) {
			s.say("yours is the best\n")
		} else {
			s.say("too low\n")
		}
	default:
		s.say("name NAME, bid N, best, quit\n")
	}
	return true
}

// plain keeps out what a terminal might act on.
func plain(name string) bool {
	return name != "" && utf8.RuneCountInString(name) <= maxName && strings.IndexFunc(name, func(r rune) bool {
		return r == utf8.RuneError || !unicode.IsLetter(r) && !unicode.IsDigit(r)
	}) < 0
}

// say writes a line. Who does not read, until a megabyte of it waits, has no use for more.
func (s *session) say(line string) {
	if _, err := io.WriteString(tryWriter{s.conn}, line); errors.Is(err, tcpio.ErrWouldBlock) {
		s.conn.Abort()
	}
}

// tryWriter is a Conn that never blocks, as an io.Writer.
type tryWriter struct{ *tcpio.Conn }

func (w tryWriter) Write(p []byte) (int, error) { return w.TryWrite(p) }
