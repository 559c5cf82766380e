package tlsio

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/rabbit-backend/tcpio/internal/buf"
)

var errAgain = errors.New("again")

// A socket has bytes, some of which have arrived.
type socket struct {
	sent    []byte
	arrived int
	calls   int
}

func (s *socket) recv(p []byte) (int, error) {
	s.calls++
	if s.arrived == 0 {
		if len(s.sent) == 0 {
			return 0, io.EOF
		}
		return 0, errAgain
	}
	n := copy(p, s.sent[:s.arrived])
	s.sent = s.sent[n:]
	s.arrived -= n
	return n, nil
}

func record(kind byte, size int) []byte {
	b := make([]byte, header+size)
	b[0], b[1], b[2], b[3], b[4] = kind, 3, 3, byte(size>>8), byte(size)
	for i := range size {
		b[header+i] = byte(i)
	}
	return b
}

// However a stream arrives and is read, its records come whole, one at a time and unchanged.
func TestRecordsComeWhole(t *testing.T) {
	for range 200 {
		var pool buf.Pool
		var r Records
		var s socket
		var want []byte
		var sizes []int
		for range 20 {
			size := rand.IntN(40)
			switch rand.IntN(4) {
			case 0:
				size = rand.IntN(buf.Record - header + 1)
			case 1:
				size = rand.IntN(5000)
			}
			want = append(want, record(23, size)...)
			sizes = append(sizes, header+size)
		}
		s.sent = bytes.Clone(want)
		if before := min(rand.IntN(buf.Large), len(want)); before > 0 { // read with what came before TLS
			r.Begin(&pool, s.sent[:before])
			s.sent = s.sent[before:]
		}
		var got []byte
		for {
			size, err := r.Next(&pool, s.recv)
			if err == io.EOF {
				break
			}
			if err == errAgain {
				r.Rest(&pool)
				s.arrived = min(1+rand.IntN(6000), len(s.sent))
				continue
			}
			if err != nil || size != sizes[0] || r.Left() != size {
				t.Fatalf("a record of %d bytes, of which %d are left, %v; want %d", size, r.Left(), err, sizes[0])
			}
			sizes = sizes[1:]
			for r.Left() > 0 {
				p := make([]byte, 1+rand.IntN(9000))
				got = append(got, p[:r.Read(p)]...)
				if rand.IntN(3) == 0 {
					r.Rest(&pool)
				}
			}
			if n := r.Read(make([]byte, 1)); n != 0 {
				t.Fatal("a read behind the record has bytes of the next one")
			}
		}
		if !bytes.Equal(got, want) || len(sizes) != 0 {
			t.Fatalf("%d bytes came of %d; %d records are missing", len(got), len(want), len(sizes))
		}
		if r.Rest(&pool); !r.Empty() {
			t.Error("a block is kept, and there are no bytes")
		}
	}
}

// A record that comes a byte at a time costs a recv a byte and a few blocks: the work is linear.
func TestRecordByteByByteIsLinear(t *testing.T) {
	var pool buf.Pool
	var r Records
	s := socket{sent: record(handshake, buf.Record-header)}
	total, moves := len(s.sent), 0
	var last *buf.Block
	for err := error(errAgain); err != nil; {
		s.arrived = 1
		if err = r.Hello(&pool, s.recv); err != nil && err != errAgain {
			t.Fatal(err)
		}
		r.Rest(&pool)
		if r.b != last {
			moves++
			last = r.b
		}
	}
	if moves > 4 || s.calls > 2*total {
		t.Errorf("%d blocks and %d calls of recv for %d bytes", moves, s.calls, total)
	}
	if calls := s.calls; r.Hello(&pool, s.recv) != nil || s.calls != calls {
		t.Error("a second Hello looks again")
	}
	if r.Left() != total {
		t.Errorf("%d bytes are left, want %d", r.Left(), total)
	}
	if r.Drop(&pool); !r.Empty() || r.Left() != 0 {
		t.Error("something is left behind Drop")
	}
}

func TestHelloRefusesWhatIsNoHandshake(t *testing.T) {
	var pool buf.Pool
	for _, tt := range []struct {
		sent string
		want error
	}{
		{"", io.EOF}, {"GET / HTTP/1.1\r\n", ErrNotTLS}, {"\x17", ErrNotTLS}, {"\x16", io.EOF},
		{"\x16\x03\x01\x00\x01", io.EOF}, {"\x16\x03\x01\x00\x01x", nil}, {"\x16\x03\x01\x00\x01xy", nil},
	} {
		var r Records
		s := socket{sent: []byte(tt.sent), arrived: len(tt.sent)}
		if err := r.Hello(&pool, s.recv); err != tt.want {
			t.Errorf("%q: %v, want %v", tt.sent, err, tt.want)
		}
	}
}

// crypto/tls refuses a record by its header: it must not be waited for.
func TestRecordLongerThanAnyIsHandedOutAtOnce(t *testing.T) {
	var pool buf.Pool
	var r Records
	s := socket{sent: record(23, buf.Record-header+1), arrived: 10}
	if size, err := r.Next(&pool, s.recv); size != 10 || err != nil {
		t.Errorf("%d bytes, %v; want the 10 that are there", size, err)
	}
}

func TestReadingRecordsAllocatesNothing(t *testing.T) {
	var pool buf.Pool
	var r Records
	sent := record(23, 1000)
	p := make([]byte, 2000)
	if n := testing.AllocsPerRun(100, func() {
		s := socket{sent: sent, arrived: len(sent)}
		if _, err := r.Next(&pool, s.recv); err != nil {
			t.Fatal(err)
		}
		r.Read(p)
		r.Rest(&pool)
	}); n >= 1 {
		t.Errorf("%v allocations a record", n)
	}
}
