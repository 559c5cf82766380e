package main

import (
	"bufio"
	"bytes"
	"io"
	"testing"
)

// FuzzServer sends any bytes, and FIN: there is a well-formed reply to each request and no more,
// whatever the requests are, one more for what is no request, and then the end; a browser is told
// nothing.
func FuzzServer(f *testing.F) {
	for _, tt := range wellFormed {
		f.Add([]byte(tt.in))
	}
	for _, in := range []string{
		"set a 1\r\nincrby a 41\r\nget a\r\nmget a b\r\n", "client list\r\nclient setname x\r\nclient getname\r\n", "quit\r\nping\r\n", "quit now\r\nping\r\n",
		"hello 3\r\nmulti\r\nget a\r\nset a 1\r\nexec\r\nclient info\r\nwatch a\r\nmulti\r\nnosuch\r\nexec\r\n",
		"ping\r\nPOST / HTTP/1.1\r\nset a 1\r\n", "set a 1\r\nexpire a 10 nx\r\nexpire a 10 gt lt\r\nhello 2 auth a b setname c\r\n",
		"set a 1 px 100\r\npttl a\r\nexpire a -1\r\nexists a\r\ninfo\r\ncommand\r\nconfig get *\r\n", "echo \"\\r\\n+OK\"\r\n*1\r\n$-1\r\n",
	} {
		f.Add([]byte(in))
	}
	addr := start(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		want, browser := 0, false
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
			if browser = len(args) > 0 && isHTTP(args[0]); browser {
				break
			}
			if len(args) > 0 {
				want++
			}
			if len(args) > 0 && bytes.EqualFold(args[0], []byte("quit")) {
				break
			}
		}
		c := dial(t, addr)
		if got := c.do("FLUSHALL"); got != "+OK" {
			t.Fatal(got)
		}
		go func() { // the server may end first, so a failure is no news
			_, _ = c.Write(in)
			_ = c.CloseWrite()
		}()
		r := bufio.NewReader(c.r)
		for i := range want {
			if _, err := readReply(r); err == io.EOF && browser {
				break // what was in one batch with it has no reply
			} else if err != nil {
				t.Fatalf("reply %d of %d: %v", i, want, err)
			}
		}
		if rest, err := io.ReadAll(r); len(rest) > 0 || err != nil {
			t.Errorf("%.100q, %v behind %d replies", rest, err, want)
		}
	})
}
