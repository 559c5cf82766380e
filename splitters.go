package tcpio

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ErrBareNewline says that a line has a CR or an LF that is not part of a CRLF; see [LineSplitter].
var ErrBareNewline = errors.New("tcpio: line with a CR or LF that is not part of a CRLF")

// A tooLongError is a frame that exceeds a limit. It matches bufio.ErrTooLong.
type tooLongError struct {
	limit string // the limit's name
	most  int    // its value, in bytes
}

func (e *tooLongError) Error() string {
	return fmt.Sprintf("tcpio: frame longer than %s (%d bytes)", e.limit, e.most)
}

// Is reports whether target is bufio.ErrTooLong.
func (e *tooLongError) Is(target error) bool { return target == bufio.ErrTooLong }

// A LengthSplitter cuts frames that begin with their length. Its Split is for [Conn.Frames], or for
// bufio.Scanner:
//
//	var split = tcpio.LengthSplitter{Size: 4, Max: 1 << 20}.Split // once: a method value allocates
//	...
//	for frame, err := range c.Frames(split) {
//
// A frame is Offset bytes, the length, and as many bytes as the length says. The zero value is a
// varint and what it counts. MQTT is {Offset: 1, Keep: true}; PostgreSQL {Size: 4, Offset: 1,
// Adjust: -4, Keep: true}; MySQL {Size: 3, LittleEndian: true, Adjust: 1, Keep: true}.
type LengthSplitter struct {
	// Size is how many bytes the length has: 1 to 8; 0 means a varint, as binary.Uvarint reads it.
	Size int
	// LittleEndian says that the length's first byte is its lowest; otherwise it is its highest.
	// For a varint it has no effect.
	LittleEndian bool
	// Offset is how many bytes come before the length, a message's type say.
	Offset int
	// Adjust is added to the length: -Size where the length counts itself.
	Adjust int
	// Keep leaves Offset and the length in the frames. Otherwise only what follows is.
	Keep bool
	// Max bounds a frame, in bytes of the stream: Offset and the length count. 0 means 1 GiB.
	// Frames has a bound of its own, [ListenerOptions].MaxFrame, but meets it only when as many
	// bytes have arrived: with Max, a frame that is too long is refused as soon as its length is
	// there.
	Max int
}

// Split is a bufio.SplitFunc. It returns an error that matches bufio.ErrTooLong and names the limit
// when a length goes past Max or past 64 bits, another error when a length with Adjust is negative
// or a field is out of range, and io.ErrUnexpectedEOF when the end cuts a frame. It neither blocks
// nor keeps data; frames are part of data.
func (s LengthSplitter) Split(data []byte, atEOF bool) (advance int, frame []byte, err error) {
	most := s.Max
	switch {
	case s.Size < 0 || s.Size > 8:
		return 0, nil, fmt.Errorf("tcpio: LengthSplitter.Size: neither 0 nor 1 to 8: %d", s.Size)
	case s.Offset < 0 || s.Offset > mostBytes:
		return 0, nil, fmt.Errorf("tcpio: LengthSplitter.Offset: out of range: %d", s.Offset)
	case s.Adjust < -mostBytes || s.Adjust > mostBytes:
		return 0, nil, fmt.Errorf("tcpio: LengthSplitter.Adjust: out of range: %d", s.Adjust)
	case most < 0 || most > mostBytes:
		return 0, nil, fmt.Errorf("tcpio: LengthSplitter.Max: out of range: %d", most)
	case most == 0:
		most = mostBytes
	}
	length, size := uint64(0), 0
	if len(data) > s.Offset {
		if length, size = s.length(data[s.Offset:]); size < 0 {
			return 0, nil, &tooLongError{"LengthSplitter.Max", most}
		}
	}
	switch {
	case size == 0 && len(data) > 0 && s.Offset+max(s.Size, 1) > most:
		return 0, nil, &tooLongError{"LengthSplitter.Max", most}
	case size == 0:
		return 0, nil, cutOff(data, atEOF)
	case length > 2*mostBytes: // so that the sum below fits
		return 0, nil, &tooLongError{"LengthSplitter.Max", most}
	}
	body := int64(length) + int64(s.Adjust)
	switch head := int64(s.Offset + size); {
	case body < 0:
		return 0, nil, fmt.Errorf("tcpio: length prefix of %d, which LengthSplitter.Adjust %d makes negative", length, s.Adjust)
	case head+body > int64(most):
		return 0, nil, &tooLongError{"LengthSplitter.Max", most}
	case head+body > int64(len(data)):
		return 0, nil, cutOff(data, atEOF)
	case s.Keep:
		return int(head + body), data[:head+body], nil
	default:
		return int(head + body), data[head : head+body], nil
	}
}

// length reads the length that data, which is not empty, begins with. Its size is 0 if it is not
// whole, and negative if it has more than 64 bits.
func (s LengthSplitter) length(data []byte) (length uint64, size int) {
	if s.Size == 0 {
		return binary.Uvarint(data)
	}
	if len(data) < s.Size {
		return 0, 0
	}
	var b [8]byte
	if s.LittleEndian {
		copy(b[:], data[:s.Size])
		return binary.LittleEndian.Uint64(b[:]), s.Size
	}
	copy(b[8-s.Size:], data[:s.Size])
	return binary.BigEndian.Uint64(b[:]), s.Size
}

// cutOff is why a splitter finds no whole frame in data: nil until there is more.
func cutOff(data []byte, atEOF bool) error {
	if atEOF && len(data) > 0 {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// A LineSplitter cuts lines that end with CRLF. Its Split is for [Conn.Frames], or for
// bufio.Scanner. The lines come without their end. In contrast to bufio.ScanLines what the end of
// the stream cuts is not a line, but an error.
type LineSplitter struct {
	// Lenient takes an LF alone as an end too, and a CR elsewhere as part of the line. Otherwise
	// each of them that is not part of a CRLF is ErrBareNewline: two programs that do not agree
	// where a line ends can be made to see two different requests in the same bytes.
	Lenient bool
	// Max bounds a line, in bytes, its end counts; 0 means 1 GiB. Frames has a bound of its own,
	// [ListenerOptions].MaxFrame.
	Max int
}

// Split is a bufio.SplitFunc. It returns ErrBareNewline; an error that matches bufio.ErrTooLong and
// names the limit when a line exceeds Max; another error when Max is out of range; and
// io.ErrUnexpectedEOF when the end cuts a line. It neither blocks nor keeps data; lines are part of
// data.
func (s LineSplitter) Split(data []byte, atEOF bool) (advance int, line []byte, err error) {
	most := s.Max
	if most < 0 || most > mostBytes {
		return 0, nil, fmt.Errorf("tcpio: LineSplitter.Max: out of range: %d", most)
	}
	if most == 0 {
		most = mostBytes
	}
	look := data[:min(len(data), most)]
	end := bytes.IndexByte(look, '\n')
	if !s.Lenient {
		before := look
		if end >= 0 {
			before = look[:end]
		}
		cr := bytes.IndexByte(before, '\r')
		if cr >= 0 && cr < len(before)-1 || end >= 0 && cr < 0 {
			return 0, nil, ErrBareNewline
		}
	}
	switch {
	case end < 0 && len(data) >= most:
		return 0, nil, &tooLongError{"LineSplitter.Max", most}
	case end < 0:
		return 0, nil, cutOff(data, atEOF)
	case end > 0 && data[end-1] == '\r':
		return end + 1, data[:end-1], nil
	}
	return end + 1, data[:end], nil
}
