package contract

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/rabbit-backend/tcpio"
)

// scan cuts p with split. A reader that gives a byte at a time shows split every beginning of p.
func scan(p []byte, split bufio.SplitFunc) (frames []string, err error) {
	s := bufio.NewScanner(iotest.OneByteReader(bytes.NewReader(p)))
	s.Buffer(nil, len(p)+2)
	s.Split(split)
	for s.Scan() {
		frames = append(frames, s.Text())
	}
	return frames, s.Err()
}

func TestLengthsOfEverySizeAndOrder(t *testing.T) {
	body := strings.Repeat("b", 200)
	for size := range 9 {
		for _, little := range []bool{false, true} {
			head := binary.AppendUvarint(nil, 200)
			if size > 0 {
				head = binary.BigEndian.AppendUint64(nil, 200)[8-size:]
				if little {
					head = binary.LittleEndian.AppendUint64(nil, 200)[:size]
				}
			}
			one := string(head) + body
			s := tcpio.LengthSplitter{Size: size, LittleEndian: little}
			if got, err := scan([]byte(one+one), s.Split); err != nil || !slices.Equal(got, []string{body, body}) {
				t.Errorf("%+v: %q, %v", s, got, err)
			}
			s.Keep = true
			if got, err := scan([]byte(one+one), s.Split); err != nil || !slices.Equal(got, []string{one, one}) {
				t.Errorf("%+v: %q, %v", s, got, err)
			}
			s.Max = len(one)
			if _, err := scan([]byte(one), s.Split); err != nil {
				t.Errorf("%+v, a frame of that size: %v", s, err)
			}
			s.Max--
			if _, err := scan([]byte(one)[:len(head)], s.Split); !errors.Is(err, bufio.ErrTooLong) {
				t.Errorf("%+v, a frame of one byte more: %v", s, err)
			}
			if _, err := scan([]byte(one)[:len(one)-1], (tcpio.LengthSplitter{Size: size, LittleEndian: little}).Split); err != io.ErrUnexpectedEOF {
				t.Errorf("%+v, a frame that is cut: %v", s, err)
			}
		}
	}
}

func TestLengthsWithWhatIsAroundThem(t *testing.T) {
	for name, tc := range map[string]struct {
		s    tcpio.LengthSplitter
		in   string
		want []string
	}{
		"mqtt":       {tcpio.LengthSplitter{Offset: 1, Keep: true}, "\x30\x02hi\xc0\x00", []string{"\x30\x02hi", "\xc0\x00"}},
		"postgresql": {tcpio.LengthSplitter{Size: 4, Offset: 1, Adjust: -4, Keep: true}, "Q\x00\x00\x00\x06x\x00X\x00\x00\x00\x04", []string{"Q\x00\x00\x00\x06x\x00", "X\x00\x00\x00\x04"}},
		"mysql":      {tcpio.LengthSplitter{Size: 3, LittleEndian: true, Adjust: 1, Keep: true}, "\x01\x00\x00\x07a\x00\x00\x00\x08", []string{"\x01\x00\x00\x07a", "\x00\x00\x00\x08"}},
		"bodies":     {tcpio.LengthSplitter{Size: 1, Offset: 2}, "..\x01a..\x00..\x02bc", []string{"a", "", "bc"}},
		"nothing":    {tcpio.LengthSplitter{}, "", nil},
	} {
		if got, err := scan([]byte(tc.in), tc.s.Split); err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, %v; want %q", name, got, err, tc.want)
		}
	}
}

func TestBadLengthsAreErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		s       tcpio.LengthSplitter
		in      string
		tooLong bool
		want    string
	}{
		"64 bits":        {tcpio.LengthSplitter{Size: 8}, "\xff\xff\xff\xff\xff\xff\xff\xff", true, "tcpio: frame longer than LengthSplitter.Max (1073741824 bytes)"},
		"past Max":       {tcpio.LengthSplitter{Size: 2, Max: 100}, "\x00\x63", true, "tcpio: frame longer than LengthSplitter.Max (100 bytes)"},
		"a long varint":  {tcpio.LengthSplitter{}, strings.Repeat("\xff", 11), true, ""},
		"head over Max":  {tcpio.LengthSplitter{Size: 4, Offset: 7, Max: 10}, "x", true, ""},
		"less than self": {tcpio.LengthSplitter{Size: 2, Adjust: -2}, "\x00\x01", false, ""},
		"Size":           {tcpio.LengthSplitter{Size: 9}, "x", false, "tcpio: LengthSplitter.Size: neither 0 nor 1 to 8: 9"},
		"Offset":         {tcpio.LengthSplitter{Offset: -1}, "x", false, ""},
		"Adjust":         {tcpio.LengthSplitter{Adjust: 1<<30 + 1}, "x", false, ""},
		"Max":            {tcpio.LengthSplitter{Max: -1}, "x", false, ""},
	} {
		_, _, err := tc.s.Split([]byte(tc.in), false)
		if err == nil || errors.Is(err, bufio.ErrTooLong) != tc.tooLong || tc.want != "" && err.Error() != tc.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLinesStrictAndLenient(t *testing.T) {
	for _, tc := range []struct {
		in              string
		strict, lenient []string
		bad, cut        error
	}{
		{"", nil, nil, nil, nil},
		{"a\r\n\r\nb c\r\n", []string{"a", "", "b c"}, []string{"a", "", "b c"}, nil, nil},
		{"a\nb\r\n", nil, []string{"a", "b"}, tcpio.ErrBareNewline, nil},
		{"ok\r\na\rb\r\n", []string{"ok"}, []string{"ok", "a\rb"}, tcpio.ErrBareNewline, nil},
		{"\n", nil, []string{""}, tcpio.ErrBareNewline, nil},
		{"\r\r\n", nil, []string{"\r"}, tcpio.ErrBareNewline, nil},
		{"a\r\nb", []string{"a"}, []string{"a"}, io.ErrUnexpectedEOF, io.ErrUnexpectedEOF},
		{"a\r\nb\r", []string{"a"}, []string{"a"}, io.ErrUnexpectedEOF, io.ErrUnexpectedEOF},
	} {
		got, err := scan([]byte(tc.in), tcpio.LineSplitter{}.Split)
		if !slices.Equal(got, tc.strict) || err != tc.bad {
			t.Errorf("strict %q: %q, %v", tc.in, got, err)
		}
		got, err = scan([]byte(tc.in), tcpio.LineSplitter{Lenient: true}.Split)
		if !slices.Equal(got, tc.lenient) || err != tc.cut {
			t.Errorf("lenient %q: %q, %v", tc.in, got, err)
		}
	}
	for _, lenient := range []bool{false, true} {
		s := tcpio.LineSplitter{Lenient: lenient, Max: 5}
		if got, err := scan([]byte("abc\r\nde\r\n"), s.Split); err != nil || len(got) != 2 {
			t.Errorf("lines of Max bytes: %q, %v", got, err)
		}
		for _, in := range []string{"abcd\r\n", "abcde", "abcdef\r\n", "abcd\r"} {
			_, err := scan([]byte(in), s.Split)
			if !errors.Is(err, bufio.ErrTooLong) || err.Error() != "tcpio: frame longer than LineSplitter.Max (5 bytes)" {
				t.Errorf("%q: %v", in, err)
			}
		}
		if _, _, err := (tcpio.LineSplitter{Max: 1<<30 + 1}).Split(nil, false); err == nil {
			t.Error("Max over its bound is no error")
		}
	}
}

// readLengths is what LengthSplitter does, written with a plain reader.
func readLengths(p []byte, s tcpio.LengthSplitter) (frames []string, err error) {
	for r := bytes.NewReader(p); r.Len() > 0; {
		at := len(p) - r.Len()
		if int64(s.Offset) > int64(r.Len()) {
			return frames, io.ErrUnexpectedEOF
		}
		_, _ = r.Seek(int64(s.Offset), io.SeekCurrent)
		var length uint64
		if s.Size == 0 {
			if length, err = binary.ReadUvarint(r); err == io.EOF {
				return frames, io.ErrUnexpectedEOF
			}
			if err != nil {
				return frames, err
			}
		} else {
			b := make([]byte, s.Size)
			if _, err := io.ReadFull(r, b); err != nil {
				return frames, io.ErrUnexpectedEOF
			}
			if s.LittleEndian {
				slices.Reverse(b)
			}
			for _, x := range b {
				length = length<<8 | uint64(x)
			}
		}
		body := len(p) - r.Len()
		size := int64(body-at) + int64(length) + int64(s.Adjust)
		if length > 1<<40 || size > int64(s.Max) || int64(length)+int64(s.Adjust) < 0 {
			return frames, errors.New("bad length")
		}
		if at+int(size) > len(p) {
			return frames, io.ErrUnexpectedEOF
		}
		if s.Keep {
			body = at
		}
		frames = append(frames, string(p[body:at+int(size)]))
		_, _ = r.Seek(int64(at)+size, io.SeekStart)
	}
	return frames, nil
}

// To see it fail: forget Adjust, or swap the orders.
func FuzzLengthSplitter(f *testing.F) {
	f.Add([]byte("\x00\x02hi\x00\x00"), uint8(2), uint8(0), int8(0), uint16(100), false, false)
	f.Add([]byte("Q\x00\x00\x00\x06x\x00"), uint8(4), uint8(1), int8(-4), uint16(1000), false, true)
	f.Add([]byte(""), uint8(7), uint8(0), int8(27), uint16(5), true, true)
	f.Add([]byte("\x80\x80\x01"), uint8(0), uint8(0), int8(0), uint16(9), true, true)
	f.Fuzz(func(t *testing.T, p []byte, size, offset uint8, adjust int8, most uint16, little, keep bool) {
		s := tcpio.LengthSplitter{Size: int(size % 9), Offset: int(offset % 4), Adjust: int(adjust), Max: int(most) + 1, LittleEndian: little, Keep: keep}
		if len(p) > 1000 {
			t.Skip()
		}
		want, wantErr := readLengths(p, s)
		got, err := scan(p, s.Split)
		if !slices.Equal(got, want) {
			t.Fatalf("%+v cuts %q into %q, %v; want %q, %v", s, p, got, err, want, wantErr)
		}
		if cut := wantErr == io.ErrUnexpectedEOF; (err == nil) != (wantErr == nil) || cut && err != wantErr && !errors.Is(err, bufio.ErrTooLong) {
			t.Fatalf("%+v of %q: %v, want %v", s, p, err, wantErr)
		}
	})
}

// To see it fail: look for the CR in all of the data, or take a line of Max+1 bytes.
func FuzzLineSplitter(f *testing.F) {
	f.Add([]byte("a\r\nbc\r\n"), uint8(0), false)
	f.Add([]byte("a\nb\rc\r\n\r"), uint8(3), true)
	f.Fuzz(func(t *testing.T, p []byte, most uint8, lenient bool) {
		if len(p) > 1000 {
			t.Skip()
		}
		s := tcpio.LineSplitter{Lenient: lenient, Max: int(most) + 1}
		var want []string
		bad := false
		for rest := string(p); rest != "" && !bad; {
			line, after, whole := strings.Cut(rest, "\n")
			n := len(rest) - len(after)
			content := strings.TrimSuffix(line, "\r")
			if bad = !whole || n > s.Max; !lenient && (len(content) == len(line) || strings.Contains(content, "\r")) {
				bad = true
			}
			if !bad {
				want, rest = append(want, content), after
			}
		}
		got, err := scan(p, s.Split)
		if !slices.Equal(got, want) || (err != nil) != bad {
			t.Fatalf("%+v cuts %q into %q, %v; want %q, bad %v", s, p, got, err, want, bad)
		}
	})
}

// To see it fail: make the error of a frame that is too long before it is known to be.
func TestSplittersDoNotAllocate(t *testing.T) {
	length := tcpio.LengthSplitter{Size: 4, Max: 100}.Split
	line := tcpio.LineSplitter{Max: 100}.Split
	message, text := []byte("\x00\x00\x00\x05hello"), []byte("hello\r\n")
	for name, cut := range map[string]func() ([]byte, error){
		"length": func() ([]byte, error) { _, f, err := length(message, false); return f, err },
		"line":   func() ([]byte, error) { _, f, err := line(text, false); return f, err },
	} {
		if frame, err := cut(); string(frame) != "hello" || err != nil {
			t.Fatalf("%s: %q, %v", name, frame, err)
		}
		if n := testing.AllocsPerRun(100, func() { _, _ = cut() }); n != 0 {
			t.Errorf("%s: %v allocations for a frame", name, n)
		}
	}
}
