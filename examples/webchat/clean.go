package main

import (
	"bytes"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxLine is the longest line taken, in bytes without its end.
const maxLine = 1000

// A lineSplitter cuts input into lines for Conn.Frames. A line over maxLine comes out as one
// tooLong, whatever its length, and is otherwise thrown away, so that it costs no memory and its
// sender can be answered and stay. ListenerOptions.MaxFrame would close the connection instead.
// What is left without a newline at the end of the stream is a line.
type lineSplitter struct{ skipping bool }

// tooLong stands for a line over maxLine. No line is equal to it, since none holds a newline.
var tooLong = []byte("\n")

func (s *lineSplitter) split(data []byte, atEOF bool) (advance int, line []byte, err error) {
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
	case n > maxLine+1, n == maxLine+1 && data[maxLine] != '\r':
		s.skipping = true
		return maxLine, tooLong, nil
	case end >= 0:
		return end + 1, bytes.TrimSuffix(data[:end], []byte("\r")), nil
	case atEOF && n > 0:
		return n, bytes.TrimSuffix(data, []byte("\r")), nil
	}
	return 0, nil, nil
}

// clean makes a line safe to show on somebody else's terminal. What is not UTF-8, and every
// character that is not text, becomes U+FFFD, so that the reader sees that something was there:
// control characters, of which ESC and U+009B begin terminal commands; bidirectional overrides,
// isolates and marks, which make text look like other text; other invisible format characters, line
// separators and private characters. A tab becomes a space; spaces at the end go.
//
// The zero-width joiner and non-joiner stay: they are part of many scripts and of emoji, and act on
// their neighbours only.
func clean(line []byte) string {
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

// maxName is the longest name of a user or room, in characters.
const maxName = 20

// validName reports whether s may name a user or a room: letters and digits of any script, - and _.
// Marks are not allowed, so there is one way only to write a name, nor are the four letters that
// show nothing. That two scripts have letters that look alike remains: a program that needs more
// has golang.org/x/text/secure/precis.
func validName(s string) bool {
	if s == "" || utf8.RuneCountInString(s) > maxName {
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

// foldName makes names equal that differ in case only. Through upper case first, since some letters
// share it, such as the two small sigmas.
func foldName(s string) string { return strings.ToLower(strings.ToUpper(s)) }
