package main

import (
	"bytes"
	"strconv"
)

// A scanner finds where values of RESP2 and RESP3 end, in a stream that may be cut anywhere. It
// keeps no bytes, so that a value of any size costs nothing. The zero value is ready, and between
// two values it is zero again but for first.
type scanner struct {
	first byte // of the value: its type
	kind  byte // of the element whose line is being read; 0: a new one begins
	left  int  // elements still to come
	skip  int  // bytes of a bulk string, and its line end
	num   int  // of the line
	seen  int  // bytes of the number
	minus bool
	cr    bool // the last byte was a CR

	request bool // all elements are strings that are there
}

// Bounds of what a scanner takes: more is no sane peer's.
const (
	maxBulk     = 512 << 20
	maxElements = 1 << 28
)

type protocolError string

func (e protocolError) Error() string { return "Protocol error: " + string(e) }

// next takes bytes of p up to the end of a value. It returns how many, and whether the value is
// whole.
func (s *scanner) next(p []byte) (n int, whole bool, err error) {
	for n < len(p) {
		switch {
		case s.skip > 0:
			m := min(s.skip, len(p)-n)
			n += m
			if s.skip -= m; s.skip == 0 {
				s.left--
			}
		case s.kind == 0:
			if s.left == 0 {
				s.left, s.first = 1, p[n]
			} else if s.request && p[n] != '$' {
				return n, false, protocolError("expected '$', got " + strconv.QuoteRune(rune(p[n])))
			}
			s.kind, s.num, s.seen, s.minus, s.cr = p[n], 0, 0, false, false
			n++
		default:
			m, done, err := s.line(p[n:])
			if n += m; err != nil {
				return n, false, err
			}
			if !done {
				return n, false, nil
			}
			if err := s.element(); err != nil {
				return n, false, err
			}
		}
		if s.left == 0 && s.skip == 0 && s.kind == 0 {
			return n, true, nil
		}
	}
	return n, false, nil
}

// line takes the rest of a line, and reads the number that most have.
func (s *scanner) line(p []byte) (n int, done bool, err error) {
	switch s.kind {
	case '$', '!', '=', '*', '%', '~', '>', '|':
	case '+', '-', ':', '_', '#', ',', '(':
		if i := bytes.IndexByte(p, '\n'); i >= 0 {
			return i + 1, true, nil
		}
		return len(p), false, nil
	default:
		return 0, false, protocolError("unknown type " + strconv.QuoteRune(rune(s.kind)))
	}
	for i, b := range p {
		switch {
		case s.cr:
			if b != '\n' || s.seen == 0 {
				return i, false, protocolError("invalid length")
			}
			return i + 1, true, nil
		case b == '\r':
			s.cr = true
		case b == '-' && s.seen == 0 && !s.minus:
			s.minus = true
		case b < '0' || b > '9' || s.seen > 0 && s.num == 0 || s.num > maxBulk: // Redis takes no leading zero
			return i, false, protocolError("invalid length")
		default:
			s.num = s.num*10 + int(b-'0')
			s.seen++
		}
	}
	return len(p), false, nil
}

// element notes what the line says is to come.
func (s *scanner) element() error {
	kind, n := s.kind, s.num
	s.kind = 0
	switch kind {
	case '$', '!', '=':
		if n > maxBulk || s.minus && s.request {
			return protocolError("invalid bulk length")
		}
		if s.minus {
			s.left-- // null
			return nil
		}
		s.skip = n + 2
	case '*', '%', '~', '>', '|':
		if s.minus {
			n = 0
		}
		if kind == '%' || kind == '|' {
			n *= 2
		}
		if kind != '|' { // attributes come before their value
			n--
		}
		if s.left += n; s.left > maxElements {
			return protocolError("invalid multibulk length")
		}
	default:
		s.left--
	}
	return nil
}

// A splitter cuts a client's requests: arrays of bulk strings, and lines. It looks at each byte
// once, however small the pieces are that a request comes in.
type splitter struct {
	max  int // bytes of a request
	scan scanner
	pos  int   // bytes that need no second look
	bad  error // why the rest cannot be understood; the token is of no use then
}

const maxInline = 64 << 10

// split is a bufio.SplitFunc. Its errors are in s.bad, with a token, so that what is wrong is
// answered in its turn.
func (s *splitter) split(data []byte, _ bool) (advance int, token []byte, err error) {
	if len(data) == 0 {
		return 0, nil, nil
	}
	end := 0
	if data[0] != '*' {
		if i := bytes.IndexByte(data[s.pos:], '\n'); i >= 0 {
			end = s.pos + i + 1
		} else if s.pos = len(data); s.pos > maxInline {
			s.bad = protocolError("too big inline request")
		}
	} else {
		s.scan.request = true
		n, whole, err := s.scan.next(data[s.pos:])
		s.pos += n
		if s.bad = err; whole {
			end = s.pos
		}
		if end == 0 && s.bad == nil && len(data) >= s.max {
			s.bad = protocolError("too big request")
		}
	}
	if s.bad != nil {
		return len(data), data, nil
	}
	if end == 0 {
		return 0, nil, nil
	}
	s.scan, s.pos = scanner{}, 0
	return end, data[:end], nil
}

// arguments appends the arguments of a whole request in array form to args, at most n of them.
func arguments(args [][]byte, request []byte, n int) [][]byte {
	for i := bytes.IndexByte(request, '\n') + 1; i < len(request) && len(args) < n; {
		end := i + bytes.IndexByte(request[i:], '\r')
		size, err := strconv.Atoi(string(request[i+1 : end]))
		if err != nil || size < 0 {
			return args // the splitter lets none pass
		}
		args = append(args, request[end+2:end+2+size])
		i = end + 2 + size + 2
	}
	return args
}

// words splits an inline request as Redis does: by spaces, but for those in quotes. It returns
// false if a quote is not closed, or not followed by a space.
func words(line []byte) (args [][]byte, ok bool) {
	for i := 0; ; {
		for i < len(line) && isSpace(line[i]) {
			i++
		}
		if i == len(line) {
			return args, true
		}
		word, quote := []byte{}, byte(0)
		for ; ; i++ {
			if i == len(line) {
				if quote != 0 {
					return nil, false
				}
				break
			}
			b := line[i]
			if quote == 0 {
				if isSpace(b) {
					break
				}
				if b == '"' || b == '\'' {
					quote = b
				} else {
					word = append(word, b)
				}
				continue
			}
			switch {
			case b == quote:
				if i+1 < len(line) && !isSpace(line[i+1]) {
					return nil, false
				}
				quote = 0
			case b == '\\' && quote == '\'' && i+1 < len(line) && line[i+1] == '\'':
				i++
				word = append(word, '\'')
			case b == '\\' && quote == '"' && i+1 < len(line):
				if i+3 < len(line) && line[i+1] == 'x' {
					if v, err := strconv.ParseUint(string(line[i+2:i+4]), 16, 8); err == nil {
						word = append(word, byte(v))
						i += 3
						break
					}
				}
				i++
				if at := bytes.IndexByte([]byte("nrtba"), line[i]); at >= 0 {
					word = append(word, "\n\r\t\b\a"[at])
				} else {
					word = append(word, line[i])
				}
			default:
				word = append(word, b)
			}
		}
		args = append(args, word)
	}
}

func isSpace(b byte) bool { return b == ' ' || b >= '\t' && b <= '\r' || b == 0 }

// appendRequest appends a request in array form.
func appendRequest(b []byte, args ...[]byte) []byte {
	b = append(b, '*')
	b = strconv.AppendInt(b, int64(len(args)), 10)
	b = append(b, "\r\n"...)
	for _, a := range args {
		b = append(b, '$')
		b = strconv.AppendInt(b, int64(len(a)), 10)
		b = append(b, "\r\n"...)
		b = append(append(b, a...), "\r\n"...)
	}
	return b
}
