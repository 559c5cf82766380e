package main

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// encode is the wire form of a request, as a client library sends it.
func encode(args ...string) []byte {
	b := appendArray(nil, len(args))
	for _, arg := range args {
		b = appendBulk(b, arg)
	}
	return b
}

// wellFormed are inputs with the requests that are in them; what follows the last whole request
// stays unread.
var wellFormed = []struct {
	in   string
	want []string // requests, their arguments joined by |
}{
	{"", nil},
	{"*1\r\n$4\r\nPING\r\n", []string{"PING"}},
	{"*2\r\n$4\r\nECHO\r\n$0\r\n\r\n", []string{"ECHO|"}},
	{"*2\r\n$4\r\nECHO\r\n$4\r\na\r\nb\r\n", []string{"ECHO|a\r\nb"}},
	{"*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPI", []string{"PING", "PING"}},
	{"*0\r\n*-1\r\n\r\n\nPING\r\n", []string{"", "", "", "", "PING"}},
	{"*1\r", nil},
	{"*1\r\n$4\r\nPING\r", nil},
	{"PING\r\nping x\ny", []string{"PING", "ping|x"}},
	{" \t set  a   b \r\n", []string{"set|a|b"}},
	{`set "a b" 'c d'` + "\n", []string{"set|a b|c d"}},
	{`set "\x41\n\r\t\b\a\\\"\q\xZZ" '\'\n'` + "\n", []string{"set|A\n\r\t\b\a\\\"qxZZ|'\\n"}},
	{`set "" ''` + "\n", []string{"set||"}},
	{`set a"b"` + "\n", []string{"set|ab"}},
	{"a\x00b\n", []string{"a|b"}},
	{"$5\r\n", []string{"$5"}}, // Only an array may begin with a special byte; this is an inline command.
}

// malformed are inputs that end a connection, with the error.
var malformed = []struct {
	name, in string
	want     error
}{
	{"huge array", "*2000000000\r\n", errArrayLength},
	{"array over the limit", "*1048577\r\n", errArrayLength},
	{"array that cannot fit", "*1048576\r\n", errBigRequest},
	{"array past 64 bits", "*9223372036854775808\r\n", errArrayLength},
	{"array without a number", "*\r\n", errArrayLength},
	{"array with a letter", "*1a\r\n", errArrayLength},
	{"array with a plus", "*+1\r\n", errArrayLength},
	{"array with a leading zero", "*01\r\n", errArrayLength},
	{"array without LF", "*1\rx", errArrayLength},
	{"array without an end", "*" + strings.Repeat("1", 40), errBigArray},
	{"huge bulk", "*1\r\n$2000000000\r\n", errBulkLength},
	{"bulk over the limit", "*1\r\n$1048577\r\n", errBulkLength},
	{"bulk past 64 bits", "*1\r\n$18446744073709551617\r\n", errBulkLength},
	{"negative bulk", "*1\r\n$-1\r\n", errBulkLength},
	{"bulk without a number", "*1\r\n$\r\n", errBulkLength},
	{"bulk without an end", "*1\r\n$" + strings.Repeat("1", 40), errBigLength},
	{"bulk without CRLF", "*1\r\n$4\r\nPINGxx", errBulkLineEnds},
	{"no dollar", "*1\r\nPING\r\n", protocolError("expected '$', got 'P'")},
	{"second argument", "*2\r\n$3\r\nGET\r\n:1\r\n", protocolError("expected '$', got ':'")},
	{"bulks beyond one request", "*5\r\n" + strings.Repeat("$1048576\r\n"+strings.Repeat("x", maxBulk)+"\r\n", 3) +
		"$1048576\r\n", errBigRequest},
	{"long inline", strings.Repeat("x", maxInline+1), errBigInline},
	{"long inline with an end", strings.Repeat("x", maxInline) + "\n", errBigInline},
	{"open quote", "get \"a\r\n", errQuotes},
	{"open single quote", "get 'a\r\n", errQuotes},
	{"text behind a quote", "get \"a\"b\r\n", errQuotes},
}

// parseAll feeds in to one scanner in pieces of size bytes, as Frames would, and returns the
// requests and the error that ended them.
func parseAll(t testing.TB, in []byte, size int) (requests []string, err error) {
	var sc scanner
	var p parser
	done, largest := 0, 0 // bytes; of the requests so far, whose room the parser may keep
	for end := 0; end < len(in); {
		end = min(end+size, len(in))
		for {
			data := in[done:end]
			n, token, err := sc.split(data, false)
			if n < 0 || n > len(data) {
				t.Fatalf("split advanced %d of %d bytes", n, len(data))
			}
			if err != nil {
				return requests, err
			}
			if n == 0 {
				break
			}
			if !bytes.Equal(token, data[:n]) {
				t.Fatalf("the token is not the %d bytes advanced over", n)
			}
			done += n
			args, err := p.parse(token)
			if err != nil {
				return requests, err
			}
			largest = max(largest, len(token))
			if cap(p.args) > 2*largest+16 || cap(p.scratch) > 2*maxInline {
				t.Fatalf("room for %d arguments and %d bytes after requests of %d bytes at most", cap(p.args), cap(p.scratch), largest)
			}
			requests = append(requests, string(bytes.Join(args, []byte("|"))))
		}
	}
	return requests, nil
}

func TestParse(t *testing.T) {
	for _, tt := range wellFormed {
		for _, size := range []int{1, 2, 3, 1 << 20} {
			got, err := parseAll(t, []byte(tt.in), size)
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("%q in pieces of %d: %q, %v, want %q", tt.in, size, got, err, tt.want)
			}
		}
	}
}

func TestParseMalformed(t *testing.T) {
	for _, tt := range malformed {
		for _, size := range []int{1, 1000, 1 << 30} {
			if size == 1 && len(tt.in) > maxBulk {
				continue // Minutes for nothing that shorter inputs do not show.
			}
			if got, err := parseAll(t, []byte(tt.in), size); !errors.Is(err, tt.want) || got != nil {
				t.Errorf("%s in pieces of %d: %q, %v, want %v", tt.name, size, got, err, tt.want)
			}
		}
	}
}

// At the limits requests are still taken.
func TestParseAtTheLimits(t *testing.T) {
	elements := (maxRequest - len("*699049\r\n")) / minElement
	inputs := map[string][]byte{
		"inline": []byte(strings.Repeat("x", maxInline-1) + "\n"),
		"bulk":   encode(strings.Repeat("x", maxBulk)),
		"array":  encode(make([]string, elements)...),
	}
	for name, in := range inputs {
		got, err := parseAll(t, in, len(in))
		if err != nil || len(got) != 1 {
			t.Errorf("%s: %d requests, %v", name, len(got), err)
		}
	}
	if _, err := parseAll(t, encode(make([]string, elements+1)...), 1<<30); !errors.Is(err, errBigRequest) {
		t.Errorf("one element more: %v", err)
	}
}

// A request that arrives byte by byte is looked at once: what the scanner passed is overwritten
// here, and a second look would find no arguments there.
func TestScannerNeverLooksBack(t *testing.T) {
	for _, in := range [][]byte{
		encode(slices.Repeat([]string{"argument"}, 1000)...),
		[]byte(strings.Repeat("x", 10_000) + "\n"),
	} {
		var sc scanner
		data := bytes.Clone(in)
		passed := 1 // The first byte says what kind of request it is.
		for end := 1; end <= len(data); end++ {
			n, _, err := sc.split(data[:end], false)
			if err != nil {
				t.Fatalf("after %d bytes: %v", end, err)
			}
			if done := n > 0; done != (end == len(data)) {
				t.Fatalf("after %d of %d bytes: advance %d", end, len(data), n)
			}
			for ; passed < sc.pos; passed++ {
				data[passed] = '\n'
			}
		}
		if sc != (scanner{}) {
			t.Errorf("behind the request the scanner is %+v", sc)
		}
	}
}

func TestDeclaredLengthsDoNotAllocate(t *testing.T) {
	for _, in := range []string{
		"*2000000000\r\n", "*1048576\r\n", "*100000\r\n", "*1\r\n$2000000000\r\n", "*1\r\n$1048576\r\n",
	} {
		data := []byte(in)
		var sc scanner
		if n := testing.AllocsPerRun(100, func() {
			sc = scanner{}
			_, _, _ = sc.split(data, false)
		}); n != 0 {
			t.Errorf("%q: %v allocations", in, n)
		}
	}
}

func TestParserReusesItsRoom(t *testing.T) {
	var p parser
	for _, token := range [][]byte{encode("SET", "key", "value"), []byte("SET key \"value\"\r\n")} {
		if n := testing.AllocsPerRun(100, func() {
			if args, err := p.parse(token); len(args) != 3 || err != nil {
				t.Fatal(args, err)
			}
		}); n != 0 {
			t.Errorf("%q: %v allocations", token, n)
		}
	}
	if _, err := p.parse(encode(make([]string, 10*keptArgs)...)); err != nil {
		t.Fatal(err)
	}
	if _, err := p.parse(encode("PING")); err != nil {
		t.Fatal(err)
	}
	if cap(p.args) > keptArgs {
		t.Errorf("room for %d arguments is kept", cap(p.args))
	}
}

func TestParseInt(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "7": 7, "-7": -7, "9223372036854775807": 1<<63 - 1, "-9223372036854775808": -1 << 63,
	} {
		if got, ok := parseInt([]byte(in)); got != want || !ok {
			t.Errorf("%q: %d, %v", in, got, ok)
		}
	}
	for _, in := range []string{
		"", "-", "+1", "01", "-0", "00", " 1", "1 ", "1_0", "0x1", "1.0", "--1", "9223372036854775808",
		"-9223372036854775809", "18446744073709551617", "99999999999999999999",
	} {
		if got, ok := parseInt([]byte(in)); ok {
			t.Errorf("%q is taken for %d", in, got)
		}
	}
}

func TestAppend(t *testing.T) {
	for _, tt := range []struct {
		got  []byte
		want string
	}{
		{appendSimple(nil, "OK"), "+OK\r\n"},
		{appendError(nil, "ERR x"), "-ERR x\r\n"},
		{appendError(nil, "ERR a\r\n+OK\r\nb"), "-ERR a  +OK  b\r\n"},
		{appendInt(nil, -5), ":-5\r\n"},
		{appendBulk(nil, "a\r\n"), "$3\r\na\r\n\r\n"},
		{appendBulk(nil, []byte{}), "$0\r\n\r\n"},
		{appendNull(nil, 2), "$-1\r\n"},
		{appendNull(nil, 3), "_\r\n"},
		{appendNullArray(nil, 2), "*-1\r\n"},
		{appendNullArray(nil, 3), "_\r\n"},
		{appendMap(nil, 2, 7), "*14\r\n"},
		{appendMap([]byte("x"), 3, 7), "x%7\r\n"},
		{appendSet(nil, 2, 7), "*7\r\n"},
		{appendSet([]byte("x"), 3, 7), "x~7\r\n"},
		{appendText(nil, 2, "ab"), "$2\r\nab\r\n"},
		{appendText(nil, 3, "ab"), "=6\r\ntxt:ab\r\n"},
		{appendArray([]byte("x"), 2), "x*2\r\n"},
	} {
		if string(tt.got) != tt.want {
			t.Errorf("%q, want %q", tt.got, tt.want)
		}
	}
}

// FuzzSplit holds that no input makes the parser panic, run past the data or take room beyond a
// small multiple of the input; that pieces of any size give what the whole gives; and that what a
// client encodes comes out as it was.
func FuzzSplit(f *testing.F) {
	for _, tt := range wellFormed {
		f.Add([]byte(tt.in), uint16(1))
	}
	for _, tt := range malformed {
		f.Add([]byte(tt.in[:min(len(tt.in), 100)]), uint16(3))
	}
	f.Fuzz(func(t *testing.T, in []byte, size uint16) {
		var whole []string
		var p parser
		var wholeErr error
		for rest := in; wholeErr == nil; {
			n, token, err := split(rest, true)
			if n < 0 || n > len(rest) {
				t.Fatalf("split advanced %d of %d bytes", n, len(rest))
			}
			if n == 0 {
				wholeErr = err
				break
			}
			rest = rest[n:]
			args, err := p.parse(token)
			if wholeErr = err; err == nil {
				whole = append(whole, string(bytes.Join(args, []byte("|"))))
			}
		}
		pieces, piecesErr := parseAll(t, in, int(size)+1)
		if !slices.Equal(pieces, whole) || fmt.Sprint(piecesErr) != fmt.Sprint(wholeErr) {
			t.Errorf("in pieces of %d: %q, %v; whole: %q, %v", int(size)+1, pieces, piecesErr, whole, wholeErr)
		}

		args := strings.Split(string(in), "\n")
		_, token, err := split(encode(args...), true)
		if err != nil {
			return // Too long for a request.
		}
		got, err := p.parse(token)
		if err != nil || len(got) != len(args) {
			t.Fatalf("%d arguments came out of %d, %v", len(got), len(args), err)
		}
		for i, arg := range args {
			if string(got[i]) != arg {
				t.Errorf("argument %d: %q, want %q", i, got[i], arg)
			}
		}
	})
}
