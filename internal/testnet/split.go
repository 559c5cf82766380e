//go:build linux

package testnet

import (
	"bufio"
	"bytes"
	"slices"
)

// SplitPrefixed cuts frames of a length byte and that many bytes.
func SplitPrefixed(data []byte, _ bool) (int, []byte, error) {
	if len(data) == 0 || len(data) < 1+int(data[0]) {
		return 0, nil, nil
	}
	n := 1 + int(data[0])
	return n, data[1:n], nil
}

// SplitRawLines cuts lines and leaves their ends on.
func SplitRawLines(data []byte, _ bool) (int, []byte, error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i+1], nil
	}
	return 0, nil, nil
}

// Scanned is what bufio.Scanner makes of all of data, and whether it leaves bytes that are no
// frame.
func Scanned(data []byte, split bufio.SplitFunc) (frames [][]byte, rest bool) {
	used := 0
	s := bufio.NewScanner(bytes.NewReader(data))
	s.Buffer(nil, 1<<20)
	s.Split(func(data []byte, atEOF bool) (int, []byte, error) {
		advance, token, err := split(data, atEOF)
		used += advance
		return advance, token, err
	})
	for s.Scan() {
		frames = append(frames, slices.Clone(s.Bytes()))
	}
	return frames, used < len(data)
}
