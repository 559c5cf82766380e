package chatline

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestNothingReachesATerminalButText(t *testing.T) {
	for _, tt := range [][2]string{
		{"plain, äöü, 日本語, ?!", "plain, äöü, 日本語, ?!"},
		{"a\tb  ", "a b"},
		{"\x1b[31mred\x1b[0m", "\ufffd[31mred\ufffd[0m"},
		{"\x1b]0;title\x07", "\ufffd]0;title\ufffd"},
		{"\u009b2J", "\ufffd2J"}, // CSI as a character
		{"\x9b2J", "\ufffd2J"},   // CSI as a byte
		{"over\rwritten", "over\ufffdwritten"},
		{"back\b\b\x7f\x00", "back" + strings.Repeat("\ufffd", 4)},
		{"\u202eevil\u202c \u2066x\u2069 \u200f\u061c", "\ufffdevil\ufffd \ufffdx\ufffd \ufffd\ufffd"},
		{"line\u2028line\u2029", "line\ufffdline\ufffd"},
		{"\ufeffx\u200by\u00adz\U000e0041\ue000", "\ufffdx\ufffdy\ufffdz\ufffd\ufffd"},
		{"\xff\xfe \xc3\x28 \xed\xa0\x80 \xf8", "\ufffd\ufffd \ufffd( \ufffd\ufffd\ufffd \ufffd"},
		{"\U0001f468\u200d\U0001f4bb می\u200cخواهم", "\U0001f468\u200d\U0001f4bb می\u200cخواهم"},
	} {
		if got := Clean([]byte(tt[0])); got != tt[1] {
			t.Errorf("Clean(%q) = %q, want %q", tt[0], got, tt[1])
		}
	}
}

func FuzzCleanLinesAreText(f *testing.F) {
	f.Add([]byte("a\x1b[0m\u202e\xff\u0085"))
	f.Fuzz(func(t *testing.T, line []byte) {
		s := Clean(line)
		if !utf8.ValidString(s) || len(s) > 3*len(line) {
			t.Fatalf("%q became %q", line, s)
		}
		for _, r := range s {
			if r < ' ' || r >= 0x7f && r < 0xa0 || unicode.Is(unicode.Bidi_Control, r) {
				t.Fatalf("%q became %q", line, s)
			}
		}
	})
}

// FuzzLines holds that lines come out the same whatever pieces they arrive in, the long ones as
// TooLong, and that whoever is named by one has a name that is shown as it is.
func FuzzLines(f *testing.F) {
	f.Add([]byte("one\r\n\ntwo"), uint16(1))
	f.Add(bytes.Repeat([]byte("x"), MaxLine+1), uint16(3))
	f.Add(append(bytes.Repeat([]byte("x"), MaxLine), "\r\nü"...), uint16(MaxLine))
	f.Fuzz(func(t *testing.T, input []byte, piece uint16) {
		var want []string
		lines := bytes.Split(input, []byte("\n"))
		if last := len(lines) - 1; len(lines[last]) == 0 {
			lines = lines[:last]
		}
		for _, line := range lines {
			if text := bytes.TrimSuffix(line, []byte("\r")); len(text) <= MaxLine {
				want = append(want, string(text))
			} else {
				want = append(want, string(TooLong))
			}
		}
		if got := cut(t, input, int(piece)+1); !slices.Equal(got, want) {
			t.Errorf("in pieces of %d: %.60q, want %.60q", int(piece)+1, got, want)
		}
		for _, name := range want {
			if !ValidName(name) {
				continue
			}
			if Clean([]byte(name)) != name || strings.ContainsFunc(name, unicode.IsSpace) {
				t.Errorf("%q may be a name", name)
			}
			if again := FoldName(name); FoldName(again) != again {
				t.Errorf("%q folds to %q, and that to %q", name, again, FoldName(again))
			}
		}
	})
}

// Whatever pieces lines arrive in, the long ones come out as TooLong and the others whole.
func TestLongLinesAreCutOutWhateverThePieces(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var input bytes.Buffer
		var want []string
		lengths := []int{0, 1, MaxLine - 1, MaxLine, MaxLine + 1, MaxLine + 2, 2*MaxLine + 1, 5000}
		ends := []string{"\n", "\r\n"}
		for i := range 10 {
			n := lengths[rnd.IntN(len(lengths))]
			line := strings.Repeat(string(rune('a'+i)), n)
			input.WriteString(line)
			if i < 9 || n == 0 {
				input.WriteString(ends[rnd.IntN(2)])
			}
			if n > MaxLine {
				line = string(TooLong)
			}
			want = append(want, line)
		}
		for _, piece := range []int{1, 7, MaxLine, 4096, input.Len()} {
			if got := cut(t, input.Bytes(), piece); !slices.Equal(got, want) {
				t.Fatalf("in pieces of %d: got %.60q, want %.60q", piece, got, want)
			}
		}
	}
}

// cut drives a Splitter as Conn.Frames does. A bufio.Scanner would not do: at the end of the stream
// it stops when bytes are skipped without a token.
func cut(t *testing.T, input []byte, piece int) (lines []string) {
	var s Splitter
	for begin, end := 0, 0; ; {
		advance, line, err := s.Split(input[begin:end], end == len(input))
		if err != nil {
			t.Fatal(err)
		}
		begin += advance
		switch {
		case line != nil:
			lines = append(lines, string(line))
		case advance > 0:
		case end == len(input):
			return lines
		case end-begin > MaxLine+1:
			t.Fatalf("%d bytes are kept for a line", end-begin)
		default:
			end = min(end+piece, len(input))
		}
	}
}
