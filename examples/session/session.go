package main

import (
	"bufio"
	"errors"
	"fmt"
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
	maxTurn = 64  // lines
)

// An auction knows the highest bid. The channel is closed when there is a higher one, and a new one
// takes its place: so any number of sessions wait for it in their selects, and none can hold up the
// others.
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
	owed    []byte // the answers of this turn, written together
	waiting bool   // there was no room; until Writable nothing is written or read
	behind  bool   // a best bid was not told, since there was no room
	ending  bool   // close once nothing is owed
}

// run is the session's life. It ends when the mailbox is closed, which is behind the connection's
// Closed.
func (s *session) run(every time.Duration) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	s.answer("who are you? say: name NAME\n")
	s.flush()
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
			case tcpio.Writable:
				s.waiting = false
				s.flush()
				s.read()
			case tcpio.Draining:
				s.answer("the house closes\n")
				s.ending = true
				s.flush()
			}
		case <-tick.C:
			if s.name != "" {
				s.tellBest()
			}
		case <-higher:
			var best bid
			best, higher = s.auction.look()
			if s.name != "" && s.name != best.name {
				s.tellBest()
			}
		}
	}
}

// read takes the lines there are, maxTurn at most: the select gets its turn, however much the peer
// sends, and so do the ticker and the announcements.
func (s *session) read() {
	if s.waiting || s.ending {
		return // Not reading is the pause: TCP holds the peer back. Writable comes back here.
	}
	n := 0
	for line, err := range s.conn.Frames(bufio.ScanLines) {
		if errors.Is(err, bufio.ErrTooLong) {
			s.flush()
			return // the library closes
		}
		if err != nil || !s.command(string(line)) { // io.EOF, or the connection has failed, or quit
			s.ending = true
			break
		}
		if n++; n == maxTurn {
			break // another Readable follows
		}
	}
	s.flush()
}

// command reports false when the session is to end.
func (s *session) command(line string) bool {
	verb, arg, _ := strings.Cut(strings.TrimSpace(line), " ")
	arg = strings.TrimSpace(arg)
	switch {
	case verb == "quit":
		s.answer("bye\n")
		return false
	case verb == "":
	case s.name == "" && (strings.EqualFold(verb, "POST") || strings.EqualFold(verb, "Host:")):
		// A browser: a page can make it POST to any port that its visitor reaches, with bids in the body.
		// These lines come before.
		return false
	case verb == "name":
		if !plain(arg) {
			s.answer("a name is 1 to 20 letters and digits\n")
			break
		}
		s.name = arg
		best, _ := s.auction.look()
		s.answer("welcome, " + arg + "\n" + best.String())
	case s.name == "":
		s.answer("first say: name NAME\n")
	case verb == "best":
		best, _ := s.auction.look()
		s.answer(best.String())
	case verb == "bid":
		amount, err := strconv.Atoi(arg)
		if err != nil || amount <= 0 {
			s.answer("bid what?\n")
		} else if s.auction.offer(bid{s.name, amount}) {
			s.answer("yours is the best\n")
		} else {
			s.answer("too low\n")
		}
	default:
		s.answer("name NAME, bid N, best, quit\n")
	}
	return true
}

// plain keeps out what a terminal might act on.
func plain(name string) bool {
	return name != "" && utf8.RuneCountInString(name) <= maxName && strings.IndexFunc(name, func(r rune) bool {
		return r == utf8.RuneError || !unicode.IsLetter(r) && !unicode.IsDigit(r)
	}) < 0
}

// answer adds a line to what this turn says.
func (s *session) answer(line string) { s.owed = append(s.owed, line...) }

// flush says what is owed, the answers of one turn at most, and closes when that was the last.
func (s *session) flush() {
	if s.waiting || len(s.owed) > 0 && !s.say(s.owed) {
		return
	}
	s.owed = nil // an idle session has no buffer
	if s.behind {
		s.tellBest()
	}
	if s.ending {
		s.conn.Close()
	}
}

// tellBest announces the highest bid. Who is too slow for that is told the one of the moment when
// there is room again: bids are many, and only the last one counts.
func (s *session) tellBest() {
	best, _ := s.auction.look()
	s.behind = s.waiting || !s.say([]byte(best.String()))
}

// say writes p and reports false when there is no room for it: then a Writable comes. When the
// connection has failed, or is closed, Closed comes, and nothing is left to say.
func (s *session) say(p []byte) bool {
	_, err := s.conn.TryWrite(p)
	s.waiting = errors.Is(err, tcpio.ErrWouldBlock)
	return !s.waiting
}
