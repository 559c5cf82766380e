package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
)

// Many clients join, talk and leave at random, and some are cut off. In every room sits one who
// only listens, and so hears everything in the room's order. What anybody else was shown of a room
// between joining and leaving, history and live lines together, must be a piece of that without a
// gap, a repetition or a swap.
func TestEveryMemberSeesARoomsLinesWithoutGapOrRepetition(t *testing.T) {
	const clients, rooms, steps, history = 200, 8, 25, 10
	addr, _, _ := startServer(t, config{history: history})

	heard := make([]map[string]int, rooms) // line to its place
	var listening, talking sync.WaitGroup
	listeners := make([]*client, rooms)
	for i := range rooms {
		room := fmt.Sprint("r", i)
		listeners[i] = enter(t, addr, "listener"+fmt.Sprint(i), room)
		listening.Go(func() {
			heard[i] = make(map[string]int)
			for line := range linesOf(listeners[i]) {
				if isTalk(line) {
					heard[i][line] = len(heard[i])
				}
			}
		})
	}

	type stint struct {
		room  string
		lines []string
		quiet bool // joined with less than a full history
	}
	var mu sync.Mutex
	var stints []stint
	for i := range clients {
		cl := dial(t, addr)
		name := fmt.Sprint("c", i)
		// A name that is the user's own is answered and changes nothing, so this says that all before was
		// handled.
		mine := "* you are " + name
		caughtUp := make(chan struct{}, steps)
		talking.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(i)))
			say := func(lines string) {
				if _, err := io.WriteString(cl.c, lines); err != nil {
					t.Error(err)
				}
			}
			for n := range steps {
				lines := "/nick " + name + "\n"
				for range rnd.IntN(4) {
					switch rnd.IntN(8) {
					case 0, 1:
						lines += fmt.Sprintf("/join r%d\n", rnd.IntN(rooms))
					case 2:
						lines += "/leave\n"
					case 3:
						lines += "/who\n"
					default:
						lines += fmt.Sprintf("%s says %d.%d\n", name, n, len(lines))
					}
				}
				say(lines)
				<-caughtUp
			}
			if i%4 != 0 {
				say("/quit\n")
				return
			}
			say("/who\n/who\n")
			cl.c.SetLinger(0)
			cl.c.Close() // what was not read is lost, what was sent may be
		})
		talking.Go(func() {
			defer close(caughtUp)
			open := make(map[string]*stint)
			for line := range linesOf(cl) {
				if line == mine {
					caughtUp <- struct{}{}
				}
				if room, ok := strings.CutPrefix(line, "* you left "); ok {
					mu.Lock()
					stints = append(stints, *open[room])
					mu.Unlock()
					delete(open, room)
				}
				room, ok := roomOf(line)
				if !ok {
					continue
				}
				if open[room] == nil {
					open[room] = &stint{room: room}
				}
				s := open[room]
				if isTalk(line) {
					s.lines = append(s.lines, line)
				} else if strings.HasSuffix(line, "* "+name+" joined") {
					s.quiet = len(s.lines) < history
					if len(s.lines) > history {
						t.Errorf("%s was shown %d lines of history", name, len(s.lines))
					}
				}
			}
			mu.Lock()
			defer mu.Unlock()
			for _, s := range open {
				stints = append(stints, *s)
			}
		})
	}
	talking.Wait()
	for _, cl := range listeners {
		cl.send("/quit")
	}
	listening.Wait()

	seen := 0
	for _, s := range stints {
		var room int
		fmt.Sscanf(s.room, "r%d", &room)
		for i, line := range s.lines {
			at, ok := heard[room][line]
			if !ok {
				t.Fatalf("%s: nobody else heard %q", s.room, line)
			}
			if i > 0 && at != heard[room][s.lines[i-1]]+1 {
				t.Fatalf("%s: %q follows %q, but is number %d after %d", s.room, line, s.lines[i-1], at, heard[room][s.lines[i-1]])
			}
			if i == 0 && s.quiet && at != 0 {
				t.Fatalf("%s: a short history begins with line %d", s.room, at)
			}
			seen++
		}
	}
	if seen < clients*steps {
		t.Errorf("%d lines in %d stints were compared; that is too few to mean anything", seen, len(stints))
	}
}

// linesOf iterates over what a client is sent, to the end, whichever that is. A last line without
// its end is left out.
func linesOf(cl *client) func(func(string) bool) {
	return func(yield func(string) bool) {
		for {
			line, err := cl.in.ReadString('\n')
			if err != nil || !yield(line[:len(line)-1]) {
				return
			}
		}
	}
}

func roomOf(line string) (string, bool) {
	rest, ok := strings.CutPrefix(line, "[")
	if !ok {
		return "", false
	}
	room, _, ok := strings.Cut(rest, "]")
	return room, ok
}

func isTalk(line string) bool { return strings.HasPrefix(line, "[") && !strings.Contains(line, "] * ") }
