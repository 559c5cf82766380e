package main

import (
	"bufio"
	"bytes"
	"io"
	"testing"
)

// FuzzServer sends any bytes, and FIN: there is a well-formed reply to each request and no more, whatever the requests are,
// one more for what is no request, and then the end.
func FuzzServer(f *testing.F) {
	for _, tt := range wellFormed {
		f.Add([]byte(tt.in))
	}
	for _, in := range []string{
		"set a 1\r\nincrby a 41\r\nget a\r\nmget a b\r\n", "client list\r\nclient setname x\r\nclient getname\r\n", "quit\r\nping\r\n", "quit now\r\nping\r\n",
		"set a 1 px 100\r\npttl a\r\nexpire a -1\r\nexists a\r\ninfo\r\ncommand\r\nconfig get *\r\n", "echo \"\\r\\n+OK\"\r\n*1\r\n$-1\r\n",
	} {
		f.Add([]byte(in))
	}
	addr := start(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		want := 0
		var p parser
		for rest := in; ; {
			n, token, err := split(rest, true)
			if err == nil && n == 0 {
				break
			}
			var args [][]byte
			if err == nil {
				args, err = p.parse(token)
			}
			if err != nil {
				want++
				break
			}
			rest = rest[n:]
			if len(args) > 0 {
				want++
			}
			if len(args) > 0 && bytes.EqualFold(args[0], []byte("quit")) {
				break
			}
		}
		c := dial(t, addr)
		c.send(encode("FLUSHALL"))
		go func() { // the server may end first, so a failure is no news
			_, _ = c.Write(in)
			_ = c.CloseWrite()
		}()
		if got := c.reply(); got != "+OK" {
			t.Fatal(got)
		}
		r := bufio.NewReader(c.r)
		for i := range want {
			if _, err := readReply(r); err != nil {
				t.Fatalf("reply %d of %d: %v", i, want, err)
			}
		}
		if rest, err := io.ReadAll(r); len(rest) > 0 || err != nil {
			t.Errorf("%.100q, %v behind %d replies", rest, err, want)
		}
	})
}
