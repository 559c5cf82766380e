package main

import (
	"bytes"
	"math"
	"slices"
	"strconv"
)

// Limits of one request, in bytes unless said otherwise. They are checked against what a peer
// declares, before anything is stored for it: a declared length never sizes an allocation.
const (
	maxBulk    = 1 << 20     // one argument
	maxArray   = 1024 * 1024 // arguments of one request, in elements; maxRequest is the tighter bound
	maxInline  = 64 << 10    // one inline command with its line end
	maxRequest = 4 << 20     // one request in wire form
	maxHeader  = 32          // one "*<count>\r\n" or "$<length>\r\n", more than any 64-bit number needs
	minElement = 6           // "$0\r\n\r\n", the shortest argument on the wire
	keptArgs   = 1024        // elements that a parser keeps between requests
)

// protocolError is a request that cannot be parsed. The peer gets its text as an error reply, and
// because nobody knows where the next request would start, the connection is closed behind it.
type protocolError string

func (e protocolError) Error() string { return "Protocol error: " + string(e) }

// The texts are those of Redis, which clients match on. The last two are ours: Redis has no limit
// on a request short of 1 GiB, and takes any two bytes for the line end behind an argument.
const (
	errBigInline    = protocolError("too big inline request")
	errBigArray     = protocolError("too big mbulk count string")
	errBigLength    = protocolError("too big bulk count string")
	errArrayLength  = protocolError("invalid multibulk length")
	errBulkLength   = protocolError("invalid bulk length")
	errQuotes       = protocolError("unbalanced quotes in request")
	errBigRequest   = protocolError("too big request")
	errBulkLineEnds = protocolError("expected CRLF after bulk")
)

// replyError is a command that failed: the text of the error reply, with its code. The connection
// goes on.
type replyError string

func (e replyError) Error() string { return string(e) }

// scanner finds where a request ends. It remembers how far it got, so that a request which arrives
// in pieces costs one look at each argument however small the pieces are: a rescan of a
// million-element array for every byte of it would cost the one goroutine that serves everybody
// hours.
//
// The zero value is ready, and a scanner is zero again behind every request.
type scanner struct {
	pos  int // bytes that need no second look: whole arguments, or the part of an inline command that has no line end
	left int // arguments still to come
}

// split is a [bufio.SplitFunc]. The token is one whole request in wire form, an array or an inline
// command; parse takes it apart. Between two calls that return no token, data must keep its
// beginning, as bufio does. An incomplete request at the end of the input is no token and no error.
func (s *scanner) split(data []byte, _ bool) (advance int, token []byte, err error) {
	n, err := s.scan(data)
	if err != nil {
		*s = scanner{}
		return 0, nil, err
	}
	if n == 0 {
		return 0, nil, nil
	}
	*s = scanner{}
	return n, data[:n], nil
}

// split is scanner.split without a memory.
func split(data []byte, atEOF bool) (advance int, token []byte, err error) {
	return new(scanner).split(data, atEOF)
}

// scan returns the length of the request that data begins with, 0 when more of it has to come.
func (s *scanner) scan(data []byte) (int, error) {
	if len(data) == 0 {
		return 0, nil
	}
	if data[0] != '*' {
		return s.scanInline(data)
	}
	if s.pos == 0 {
		count, n, ok := header(data)
		switch {
		case !ok:
			return 0, errArrayLength
		case n == 0 && len(data) >= maxHeader:
			return 0, errBigArray
		case n == 0:
			return 0, nil
		case count > maxArray:
			return 0, errArrayLength
		case count <= 0: // Redis takes an empty array for no request at all.
			return n, nil
		case n+int(count)*minElement > maxRequest:
			return 0, errBigRequest
		}
		s.pos, s.left = n, int(count)
	}
	for ; s.left > 0; s.left-- {
		body, end, err := element(data, s.pos)
		if err != nil {
			return 0, err
		}
		// Refused as soon as it is declared, so that a request which can never be served is not collected
		// first.
		if body > 0 && end+(s.left-1)*minElement > maxRequest {
			return 0, errBigRequest
		}
		if body == 0 || end > len(data) {
			return 0, nil
		}
		if data[end-2] != '\r' || data[end-1] != '\n' {
			return 0, errBulkLineEnds
		}
		s.pos = end
	}
	return s.pos, nil
}

func (s *scanner) scanInline(data []byte) (int, error) {
	n := 0
	if i := bytes.IndexByte(data[s.pos:], '\n'); i >= 0 {
		n = s.pos + i + 1
	} else {
		s.pos = len(data)
	}
	if max(n, s.pos) > maxInline {
		return 0, errBigInline
	}
	return n, nil
}

// element reads the "$<length>\r\n" at pos and returns where the argument's bytes start and where
// the line end behind them ends, which may be past the data. A body of 0 says that the header
// itself is not complete.
func element(data []byte, pos int) (body, end int, err error) {
	if pos >= len(data) {
		return 0, 0, nil
	}
	if data[pos] != '$' {
		return 0, 0, protocolError("expected '$', got '" + string(data[pos:pos+1]) + "'")
	}
	length, n, ok := header(data[pos:])
	switch {
	case !ok:
		return 0, 0, errBulkLength
	case n == 0 && len(data)-pos >= maxHeader:
		return 0, 0, errBigLength
	case n == 0:
		return 0, 0, nil
	case length < 0 || length > maxBulk:
		return 0, 0, errBulkLength
	}
	return pos + n, pos + n + int(length) + len("\r\n"), nil
}

// header reads the number behind the first byte of data up to the line end. n is the length of all
// that, 0 when no line end is among the first maxHeader bytes; ok is false when what ends there is
// no number.
func header(data []byte) (v int64, n int, ok bool) {
	data = data[:min(len(data), maxHeader)]
	i := bytes.IndexByte(data, '\r')
	if i < 0 || i+1 == len(data) {
		return 0, 0, true
	}
	if data[i+1] != '\n' {
		return 0, 0, false
	}
	v, ok = parseInt(data[1:i])
	return v, i + 2, ok
}

// parser takes requests apart. It is reused from request to request, one for a server and not one
// for a connection.
type parser struct {
	args    [][]byte
	scratch []byte // the unquoted arguments of an inline command, at most maxInline bytes
}

// parse returns the arguments of a token that split returned; none for an empty line or an empty
// array. They lie in the token or in the parser and are valid until the next call or until the
// token is not.
func (p *parser) parse(token []byte) ([][]byte, error) {
	if cap(p.args) > keptArgs {
		p.args = nil // One request of many arguments is no reason to keep their room for ever.
	}
	p.args = p.args[:0]
	if len(token) == 0 {
		return nil, nil
	}
	if token[0] != '*' {
		return p.parseInline(token)
	}
	_, pos, _ := header(token)
	for pos < len(token) {
		body, end, err := element(token, pos)
		if err != nil {
			return nil, err
		}
		if body == 0 || end > len(token) {
			return nil, errBigRequest // Not a token of split.
		}
		p.args = append(p.args, token[body:end-len("\r\n")])
		pos = end
	}
	return p.args, nil
}

// parseInline splits a line at white space. As in Redis, "..." knows the escapes \n \r \t \b \a
// \xHH, '...' knows \' alone, and a closing quote must be followed by white space.
func (p *parser) parseInline(line []byte) ([][]byte, error) {
	line = bytes.TrimSuffix(line, []byte("\n"))
	// An argument is never longer than its source: with this much room no append below moves the
	// arguments before it.
	buf := slices.Grow(p.scratch[:0], len(line))
	defer func() { p.scratch = buf[:0] }()
	for i := 0; ; {
		for i < len(line) && isSpace(line[i]) {
			i++
		}
		if i == len(line) {
			return p.args, nil
		}
		start := len(buf)
		for i < len(line) && !isSpace(line[i]) {
			c := line[i]
			i++
			if c != '"' && c != '\'' {
				buf = append(buf, c)
				continue
			}
			var n int
			if buf, n = unquote(buf, line[i:], c); n < 0 {
				return nil, errQuotes
			}
			i += n
			if i < len(line) && !isSpace(line[i]) {
				return nil, errQuotes
			}
		}
		p.args = append(p.args, buf[start:len(buf):len(buf)])
	}
}

// unquote appends to dst what s says up to the closing quote, and returns how much of s that took;
// -1 when the quote does not close.
func unquote(dst, s []byte, quote byte) ([]byte, int) {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == quote {
			return dst, i + 1
		}
		if c == '\\' && i+1 < len(s) {
			switch next := s[i+1]; {
			case quote == '\'' && next == '\'':
				c = '\''
				i++
			case quote == '"' && next == 'x' && i+3 < len(s) && isHex(s[i+2]) && isHex(s[i+3]):
				v, _ := strconv.ParseUint(string(s[i+2:i+4]), 16, 8)
				c = byte(v)
				i += 3
			case quote == '"':
				c = next
				if j := bytes.IndexByte([]byte("nrtba"), next); j >= 0 {
					c = "\n\r\t\b\a"[j]
				}
				i++
			}
		}
		dst = append(dst, c)
	}
	return dst, -1
}

// isSpace is C's isspace, and NUL, which ends a line for Redis and would end an argument here.
func isSpace(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' || c == 0 }

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'f'
}

// parseInt takes the one spelling of a 64-bit number that Redis takes: no sign but a minus, no
// leading zero, no space.
func parseInt(b []byte) (int64, bool) {
	digits := bytes.TrimPrefix(b, []byte("-"))
	if len(digits) == 0 || len(digits) > 19 || digits[0] == '0' && len(b) > 1 {
		return 0, false
	}
	var u uint64 // 19 digits cannot overflow it.
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
		u = u*10 + uint64(c-'0')
	}
	if len(digits) < len(b) {
		return -int64(u), u <= -math.MinInt64
	}
	return int64(u), u <= math.MaxInt64
}

// The reply writers append to dst and return it, as append does.

func appendSimple(dst []byte, s string) []byte {
	dst = append(dst, '+')
	dst = append(dst, s...)
	return append(dst, '\r', '\n')
}

// appendError writes an error. A line end inside s, which may quote the peer, would let the peer
// forge replies.
func appendError(dst []byte, s string) []byte {
	dst = append(dst, '-')
	for i := range len(s) {
		c := s[i]
		if c == '\r' || c == '\n' {
			c = ' '
		}
		dst = append(dst, c)
	}
	return append(dst, '\r', '\n')
}

func appendInt(dst []byte, v int64) []byte {
	dst = append(dst, ':')
	dst = strconv.AppendInt(dst, v, 10)
	return append(dst, '\r', '\n')
}

func appendArray(dst []byte, n int) []byte {
	dst = append(dst, '*')
	dst = strconv.AppendInt(dst, int64(n), 10)
	return append(dst, '\r', '\n')
}

func appendBulk[T string | []byte](dst []byte, s T) []byte {
	dst = append(dst, '$')
	dst = strconv.AppendInt(dst, int64(len(s)), 10)
	dst = append(dst, '\r', '\n')
	dst = append(dst, s...)
	return append(dst, '\r', '\n')
}

// What follows is not the same in versions 2 and 3 of the protocol, which is resp.

func appendNull(dst []byte, resp int) []byte {
	if resp == 3 {
		return append(dst, "_\r\n"...)
	}
	return append(dst, "$-1\r\n"...)
}

func appendNullArray(dst []byte, resp int) []byte {
	if resp == 3 {
		return append(dst, "_\r\n"...)
	}
	return append(dst, "*-1\r\n"...)
}

// appendMap begins a map of n pairs, appendSet a set of n elements; to version 2 both are arrays.
func appendMap(dst []byte, resp, n int) []byte {
	mark := len(dst)
	if resp != 3 {
		return appendArray(dst, 2*n)
	}
	dst = appendArray(dst, n)
	dst[mark] = '%'
	return dst
}

func appendSet(dst []byte, resp, n int) []byte {
	mark := len(dst)
	dst = appendArray(dst, n)
	if resp == 3 {
		dst[mark] = '~'
	}
	return dst
}

// appendText writes what is for people to read.
func appendText[T string | []byte](dst []byte, resp int, s T) []byte {
	if resp != 3 {
		return appendBulk(dst, s)
	}
	const format = "txt:"
	dst = append(dst, '=')
	dst = strconv.AppendInt(dst, int64(len(format)+len(s)), 10)
	dst = append(dst, "\r\n"+format...)
	dst = append(dst, s...)
	return append(dst, '\r', '\n')
}
