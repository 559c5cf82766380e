package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

func TestMain(m *testing.M) { testnet.MainOfProgram(m) }

// start runs the program until the test ends, and sees that it ends well.
func start(t testing.TB, every time.Duration) (addr string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- run(ctx, w, "127.0.0.1:0", every) }()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("run: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return strings.TrimSpace(strings.TrimPrefix(line, "listening on ")), stop
}

type client struct {
	t *testing.T
	net.Conn
	r *bufio.Reader
}

func dial(t *testing.T, addr string) *client {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	cl := &client{t, c, bufio.NewReader(c)}
	cl.expect("who are you? say: name NAME")
	return cl
}

func (c *client) send(lines ...string) {
	c.t.Helper()
	if _, err := io.WriteString(c, strings.Join(lines, "\n")+"\n"); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) expect(lines ...string) {
	c.t.Helper()
	for _, want := range lines {
		got, err := c.r.ReadString('\n')
		if err != nil || strings.TrimSuffix(got, "\n") != want {
			c.t.Fatalf("got %q, %v; want %q", got, err, want)
		}
	}
}

func TestBiddersHearOfEachOther(t *testing.T) {
	addr, _ := start(t, time.Hour)
	ann, bob := dial(t, addr), dial(t, addr)
	ann.send("best", "name ann")
	ann.expect("first say: name NAME", "welcome, ann", "no bid yet")
	bob.send("name bob")
	bob.expect("welcome, bob", "no bid yet")
	ann.send("bid 12")
	ann.expect("yours is the best")
	bob.expect("best: 12 by ann")
	bob.send("bid 12", "bid 13")
	bob.expect("too low", "yours is the best")
	ann.expect("best: 13 by bob")
	ann.send("quit")
	ann.expect("bye")
	if _, err := ann.r.ReadByte(); err != io.EOF {
		t.Errorf("after quit: %v, want the end", err)
	}
}

func TestTheTickerTellsTheBest(t *testing.T) {
	addr, _ := start(t, 5*time.Millisecond)
	ann := dial(t, addr)
	ann.send("name ann")
	ann.expect("welcome, ann", "no bid yet", "no bid yet", "no bid yet")
}

func TestNamesThatATerminalActsOnAreRefused(t *testing.T) {
	addr, _ := start(t, time.Hour)
	ann := dial(t, addr)
	for _, bad := range []string{"", "\x1b[2Jann", "a\x07b", "\xff", "ann\u202e", strings.Repeat("a", 21)} {
		ann.send("name " + bad)
		ann.expect("a name is 1 to 20 letters and digits")
	}
}

func TestALineThatIsTooLongEndsTheSession(t *testing.T) {
	addr, _ := start(t, time.Hour)
	ann := dial(t, addr)
	ann.send("name ann\n" + strings.Repeat("x", maxLine+1)) // together; what came before is answered
	ann.expect("welcome, ann", "no bid yet")
	if b, err := io.ReadAll(ann.r); err != nil || len(b) > 0 {
		t.Errorf("got %q, %v; want the end", b, err)
	}
}

// A hundred bidders bid at once; every one of them hears the final best, and then the house closes.
func TestAllHearTheFinalBest(t *testing.T) {
	addr, stop := start(t, time.Hour)
	const bidders = 100
	var wg sync.WaitGroup
	clients := make([]*client, bidders)
	for i := range clients {
		clients[i] = dial(t, addr)
	}
	for i, c := range clients {
		wg.Add(1)
		go func() {
			defer wg.Done()
			// A name of its own: who has the best bid's name is not told of it.
			fmt.Fprintf(c, "name n%d\nbid %s\n", i, strings.Repeat("1", 1+i%9))
			for {
				line, err := c.r.ReadString('\n')
				if err != nil {
					t.Errorf("bidder %d: %v", i, err)
					return
				}
				if strings.Contains(line, " 111111111 ") || i%9 == 8 && line == "yours is the best\n" {
					return
				}
			}
		}()
	}
	wg.Wait()
	go stop()
	for i, c := range clients {
		if _, err := io.ReadAll(c.r); err != nil {
			t.Errorf("bidder %d at the end: %v", i, err)
		}
		c.Close()
	}
	stop()
}

func TestABidOutOfABrowsersPOSTIsNotTaken(t *testing.T) {
	addr, _ := start(t, time.Hour)
	for _, header := range []string{"POST / HTTP/1.1\r\n", "PUT / HTTP/1.1\r\nX: y\r\nhost: x\r\n"} {
		browser := dial(t, addr)
		browser.send(header + "\r\nname evil\nbid 1000000")
		if b, err := io.ReadAll(browser.r); err != nil || strings.Contains(string(b), "welcome") {
			t.Errorf("%q, %v; want the end", b, err)
		}
	}
	ann := dial(t, addr)
	ann.send("name ann")
	ann.expect("welcome, ann", "no bid yet")
}

// What nc -N does: the questions, the end, and then all answers and the other end are waited for.
func TestWhoHalfClosesGetsEveryAnswerAndTheEnd(t *testing.T) {
	addr, _ := start(t, time.Hour)
	ann := dial(t, addr)
	if _, err := io.WriteString(ann, "name ann\nbid 3\nbest"); err != nil { // a last line needs no newline
		t.Fatal(err)
	}
	if err := ann.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	ann.expect("welcome, ann", "no bid yet", "yours is the best", "best: 3 by ann")
	if _, err := ann.r.ReadByte(); err != io.EOF {
		t.Errorf("%v, want the end", err)
	}
}

// However much a bidder sends, the ticker and the bids of others have their turns.
func TestEndlessInputHoldsUpNeitherTheTickerNorAnnouncements(t *testing.T) {
	addr, _ := start(t, 5*time.Millisecond)
	ann, bob := dial(t, addr), dial(t, addr)
	bob.send("name bob", "bid 1")
	bob.expect("welcome, bob", "no bid yet")
	ann.send("name ann")
	ann.expect("welcome, ann")
	done := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(done)
	wg.Add(1)
	go func() { // empty lines have no answer, so nothing but their reading slows them down
		defer wg.Done()
		block := make([]byte, 256<<10)
		for i := range block {
			block[i] = '\n'
		}
		for {
			select {
			case <-done:
				return
			default:
				if _, err := ann.Write(block); err != nil {
					t.Error(err)
					return
				}
			}
		}
	}()
	for i := 2; i < 12; i++ {
		bob.send(fmt.Sprint("bid ", i))
		ticks := 0
		for want := fmt.Sprintf("best: %d by bob\n", i); ticks < 5; {
			line, err := ann.r.ReadString('\n')
			if err != nil {
				t.Fatalf("bid %d, tick %d: %v", i, ticks, err)
			}
			if line == want {
				ticks++
			}
		}
	}
}

// Who asks and does not read is held back, and gets every answer later.
func TestAnswersWaitForWhoDoesNotRead(t *testing.T) {
	addr, _ := start(t, time.Millisecond)
	ann := dial(t, addr)
	ann.send("name ann", "bid 7")
	questions := []byte(strings.Repeat("nonsense\nbid x\n", 1000))
	times, rest := 0, []byte(nil)
	for rest == nil {
		if times > 10_000 {
			t.Fatal("the server takes everything")
		}
		_ = ann.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		n, err := ann.Write(questions)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		if times++; err != nil {
			rest = questions[n:]
		}
	}
	_ = ann.SetDeadline(time.Now().Add(30 * time.Second))
	sent := make(chan error, 1)
	go func() {
		_, err := ann.Write(rest)
		sent <- err
	}()
	answers := 0
	for answers < 2000*times {
		line, err := ann.r.ReadString('\n')
		if err != nil {
			t.Fatalf("%q, %v behind %d answers of %d", line, err, answers, 2000*times)
		}
		switch line {
		case "name NAME, bid N, best, quit\n", "bid what?\n":
			if answers++; answers%1000 == 0 { // of some half a million
				_ = ann.SetDeadline(time.Now().Add(30 * time.Second))
			}
		}
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	ann.send("quit") // not before: the end waits for its reader some seconds only
	if err := ann.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Error(err)
	}
	last, err := io.ReadAll(ann.r)
	if got := strings.ReplaceAll(string(last), "best: 7 by ann\n", ""); err != nil || got != "bye\n" {
		t.Errorf("behind all answers: %q, %v", got, err)
	}
}
