package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// values of both protocols, one of each kind and some inside others.
var values = []string{
	"+OK\r\n", "-ERR no\r\n", ":-12\r\n", "$5\r\nhello\r\n", "$0\r\n\r\n", "$-1\r\n", "*-1\r\n", "*0\r\n", "*2\r\n$1\r\na\r\n:1\r\n",
	"*2\r\n*1\r\n+x\r\n*0\r\n", "_\r\n", "#t\r\n", ",1.5e3\r\n", "(123456789012345678901234567890\r\n", "!5\r\nERR x\r\n",
	"=8\r\ntxt:some\r\n", "%2\r\n+a\r\n:1\r\n+b\r\n%1\r\n+c\r\n_\r\n", "~2\r\n:1\r\n:2\r\n", "|1\r\n+ttl\r\n:3\r\n$2\r\nhi\r\n",
	"*2\r\n|1\r\n+a\r\n+b\r\n:1\r\n:2\r\n", "$13\r\nwith\r\n$1\r\nx\r\n\r\n",
}

// To see it fail: count an attribute as an element, or look for the end of a line in a string.
func TestScannerFindsTheEndHoweverTheValueIsCut(t *testing.T) {
	for _, v := range values {
		for piece := 1; piece <= len(v); piece++ {
			var s scanner
			all := v + v
			ends := []int{}
			for at := 0; at < len(all); {
				n, whole, err := s.next([]byte(all[at:min(at+piece, len(all))]))
				if err != nil || n == 0 {
					t.Fatalf("%q by %d: %d, %v", v, piece, n, err)
				}
				if at += n; whole {
					ends = append(ends, at)
				}
			}
			if !slices.Equal(ends, []int{len(v), 2 * len(v)}) {
				t.Errorf("%q by %d ends at %v", v, piece, ends)
			}
		}
	}
	for _, v := range []string{"x\r\n", "$a\r\n", "$1\n", "$\r\n", "$9999999999999\r\n", "*99999999999\r\n", "$-\r\n", "*01\r\n", "\r\n"} {
		var s scanner
		if _, _, err := s.next([]byte(v)); err == nil {
			t.Errorf("%q is taken", v)
		}
	}
}

// cut cuts requests out of input, given piece by piece as Conn.Frames does.
func cut(input string, piece int) (requests []string, bad error) {
	s := splitter{max: 1 << 10}
	data := []byte{}
	for at := 0; ; at += piece {
		for {
			n, token, _ := s.split(data, false)
			if s.bad != nil {
				return requests, s.bad
			}
			if n == 0 {
				break
			}
			requests = append(requests, string(token))
			data = data[n:]
		}
		if at >= len(input) {
			return requests, nil
		}
		data = append(data, input[at:min(at+piece, len(input))]...)
	}
}

func TestSplitterCutsRequestsHoweverTheyCome(t *testing.T) {
	want := []string{"*1\r\n$4\r\nPING\r\n", "PING\r\n", "\r\n", "*0\r\n", "*-1\r\n", "set a 'b c'\n", "*3\r\n$3\r\nSET\r\n$1\r\n*\r\n$4\r\n\r\n\r\n\r\n"}
	input := strings.Join(want, "")
	for piece := 1; piece <= len(input); piece++ {
		if got, bad := cut(input, piece); bad != nil || !slices.Equal(got, want) {
			t.Fatalf("by %d: %q, %v", piece, got, bad)
		}
	}
	for input, says := range map[string]string{
		"*1\r\n:1\r\n":                   "expected '$'",
		"*1\r\n$-1\r\n":                  "invalid bulk length",
		"*x\r\n":                         "invalid length",
		"*2\r\n$1\r\na\r\nx":             "expected '$'",
		strings.Repeat("x", maxInline+1): "too big inline",
		"*2\r\n$2000\r\n" + strings.Repeat("y", 2e3): "too big request",
	} {
		for _, piece := range []int{1, 7, len(input)} {
			if _, bad := cut("PING\r\n"+input, piece); bad == nil || !strings.Contains(bad.Error(), says) {
				t.Errorf("%.20q by %d: %v", input, piece, bad)
			}
		}
	}
}

func TestWordsAreThoseOfRedis(t *testing.T) {
	for line, want := range map[string]string{
		``: `[]`, ` `: `[]`, `a`: `["a"]`, ` set  a b `: `["set" "a" "b"]`, `set "a b" 'c d'`: `["set" "a b" "c d"]`,
		`"\x41\n\"\q"`: `["A\n\"q"]`, `'\n\''`: `["\\n'"]`, `""`: `[""]`, `a"b"`: `["ab"]`, `"\x4"`: `["x4"]`,
	} {
		if got, ok := words([]byte(line)); !ok || fmt.Sprintf("%q", got) != want {
			t.Errorf("%s: %q, %v, want %s", line, got, ok, want)
		}
	}
	for _, line := range []string{`"a`, `'a`, `"a"b`, `'a'b`, `"\`} {
		if got, ok := words([]byte(line)); ok {
			t.Errorf("%s: %q", line, got)
		}
	}
}

// A request that the splitter lets pass has the arguments that it has by appendRequest, and none
// makes it panic.
func FuzzSplitter(f *testing.F) {
	for _, v := range values {
		f.Add([]byte(v))
	}
	f.Add([]byte("*2\r\n$3\r\nGET\r\n$1\r\na\r\nPING\r\n"))
	f.Fuzz(func(t *testing.T, input []byte) {
		s, data := splitter{max: 1 << 16}, input
		for len(data) > 0 {
			n, token, _ := s.split(data, true)
			if s.bad != nil || n == 0 {
				return
			}
			if token[0] == '*' {
				args := arguments(nil, token, 1<<20)
				again := appendRequest(nil, args...)
				if back := arguments(nil, again, 1<<20); len(back) != len(args) {
					t.Fatalf("%q has %d arguments, and %d", token, len(args), len(back))
				}
			} else if args, ok := words(bytes.TrimRight(token, "\r\n")); ok {
				if back := arguments(nil, appendRequest(nil, args...), 1<<20); len(back) != len(args) {
					t.Fatalf("%q: %d words, %d arguments", token, len(args), len(back))
				}
			}
			data = data[n:]
		}
	})
}
