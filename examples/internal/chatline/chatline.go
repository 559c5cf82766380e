// Package chatline has what the chats have in common: lines, as long as they may be, and text that
// is safe to show.
package chatline

import (
	"bytes"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxLine is the longest line taken, in bytes without its end.
const MaxLine = 1000

// A Splitter cuts input into lines for Conn.Frames. A line over MaxLine comes out as one
// TooLong, whatever its length, and is otherwise thrown away, so that it costs no memory and its
// sender can be answered and stay. ListenerOptions.MaxFrame would close the connection instead.
// What is left without a newline at the end of the stream is a line.
type Splitter struct{ skipping bool }

// TooLong stands for a line over MaxLine. No line is equal to it, since none holds a newline.
var TooLong = []byte("\n")

func (s *Splitter) Split(data []byte, atEOF bool) (advance int, line []byte, err error) {
	end := bytes.IndexByte(data, '\n')
	n := end
	if end < 0 {
		n = len(data)
	}
	switch {
	case s.skipping && end >= 0:
		s.skipping = false
		return end + 1, nil, nil
	case s.skipping:
		return n, nil, nil
	case n > MaxLine+1, n == MaxLine+1 && data[MaxLine] != '\r':
		s.skipping = true
		return MaxLine, TooLong, nil
	case end >= 0:
		return end + 1, bytes.TrimSuffix(data[:end], []byte("\r")), nil
	case atEOF && n > 0:
		return n, bytes.TrimSuffix(data, []byte("\r")), nil
	}
	return 0, nil, nil
}

// Clean makes a line safe to show on somebody else's terminal. What is not UTF-8, and every
// character that is not text, becomes U+FFFD, so that the reader sees that something was there:
// control characters, of which ESC and U+009B begin terminal commands; bidirectional overrides,
// isolates and marks, which make text look like other text; other invisible format characters, line
// separators and private characters. A tab becomes a space; spaces at the end go.
//
// The zero-width joiner and non-joiner stay: they are part of many scripts and of emoji, and act on
// their neighbours only.
func Clean(line []byte) string {
	var b strings.Builder
	for len(line) > 0 {
		r, size := utf8.DecodeRune(line) // RuneError for a bad byte, which is what it becomes
		line = line[size:]
		switch {
		case r == '\t':
			r = ' '
		case r == '\u200c' || r == '\u200d':
		case unicode.In(r, unicode.Cc, unicode.Cf, unicode.Co, unicode.Zl, unicode.Zp):
			r = utf8.RuneError
		}
		b.WriteRune(r)
	}
	return strings.TrimRightFunc(b.String(), unicode.IsSpace)
}

// MaxName is the longest name of a user or room, in characters.
const MaxName = 20

// ValidName reports whether s may name a user or a room: letters and digits of any script, - and _.
// Marks are not allowed, so there is one way only to write a name, nor are the four letters that
// show nothing. That two scripts have letters that look alike remains: a program that needs more
// has golang.org/x/text/secure/precis.
func ValidName(s string) bool {
	if s == "" || utf8.RuneCountInString(s) > MaxName {
		return false
	}
	for _, r := range s {
		switch r {
		case '-', '_':
		case '\u115f', '\u1160', '\u3164', '\uffa0': // fillers
			return false
		default:
			if !unicode.IsLetter(r) && !unicode.IsDigit(r) {
				return false
			}
		}
	}
	return true
}

// FoldName makes names equal that differ in case only. Through upper case first, since some letters
// share it, such as the two small sigmas.
func FoldName(s string) string { return strings.ToLower(strings.ToUpper(s)) }
