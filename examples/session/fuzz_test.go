package main

import (
	"io"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"
)

// FuzzSession says anything, and goes: the answers are the program's own lines, with names of
// letters and digits in them, and then the end.
func FuzzSession(f *testing.F) {
	f.Add([]byte("name ann\nbid 10\nbest\nbid 10\nquit\n"))
	f.Add([]byte("bid 1\nname \x1b[2J\nname  \u202eevil \nbid -1\nbid 99999999999999999999\n\n x y"))
	f.Add([]byte("name äöü\r\nbid 7\r\nbest"))
	f.Add([]byte(strings.Repeat("x", maxLine+1) + "\nbest\n"))
	addr, _ := start(f, time.Hour)
	own := regexp.MustCompile(`^(who are you\? say: name NAME|first say: name NAME|name NAME, bid N, best, quit|a name is 1 to 20 letters and digits|` +
		`welcome, [\p{L}\p{Nd}]{1,20}|no bid yet|best: [1-9][0-9]* by [\p{L}\p{Nd}]{1,20}|bid what\?|yours is the best|too low|bye)\n$`)
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		go func() { // the session may end first, so a failure is no news
			_, _ = c.Write(in)
			_ = c.(*net.TCPConn).CloseWrite()
		}()
		out, err := io.ReadAll(c)
		if err != nil {
			t.Fatalf("%.100q, then %v", out, err)
		}
		for line := range strings.Lines(string(out)) {
			if !own.MatchString(line) {
				t.Errorf("it says %q", line)
			}
		}
	})
}
