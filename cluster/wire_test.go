package cluster

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

const (
	idA = "AAAAAAAAAAAAAAAAAAAAAA"
	idB = "BBBBBBBBBBBBBBBBBBBBBB"
)

// samples has a message of each kind.
func samples(t testing.TB) map[kind][]byte {
	record, err := packMember(&Member{ID: "ann", Info: []byte("info")})
	if err != nil {
		t.Fatal(err)
	}
	changes := []change{{1, true, record}, {300, false, ""}}
	return map[kind][]byte{
		kindBeat:   beat{idA, 1 << 40, 1000, flagHello}.append(nil),
		kindSync:   syncRequest{idA, 3, 77, []string{"t.a", "t.=2E"}}.append(nil),
		kindData:   append(appendStamp(nil, kindData, idA, 2, 1000, 900), "payload"...),
		kindChange: append(appendStamp(nil, kindChange, idA, 2, 3, 2), appendChanges(nil, changes)...),
		kindTail:   appendStamp(nil, kindTail, idA, 2, 3, 2),
		kindPart:   piece{5, "t.a", 1, true, changes[:1]}.append(appendStamp(nil, kindPart, idA, 2, 3, 2)),
		kindNone:   piece{token: 5, place: "t.a", last: true}.append(appendStamp(nil, kindNone, idA, 2, 0, 0)),
		kindAnswer: appendAnswer(nil, outcomeReply, []byte("reply")),
		kindLease:  leaseRecord{leaseTaken, 90 * time.Second}.append(nil),
	}
}

// encodedAgain takes a message apart and puts it together.
func encodedAgain(p []byte) ([]byte, error) {
	k, r := kindOf(p)
	switch k {
	case kindBeat:
		b, err := readBeat(r)
		return b.append(nil), err
	case kindSync:
		q, err := readSync(r)
		return q.append(nil), err
	case kindData, kindTail:
		s := r.stamp()
		if r.bad {
			return nil, &malformed{"stamp"}
		}
		return append(appendStamp(nil, k, string(s.node), s.run, s.seq, s.data), r.p...), nil
	case kindChange:
		s := r.stamp()
		changes, err := readChanges(r)
		return append(appendStamp(nil, k, string(s.node), s.run, s.seq, s.data), appendChanges(nil, changes)...), err
	case kindPart, kindNone:
		s := r.stamp()
		q, err := readPiece(r)
		return q.append(appendStamp(nil, k, string(s.node), s.run, s.seq, s.data)), err
	case kindLease:
		rec, err := readLease(p)
		return rec.append(nil), err
	case kindAnswer:
		outcome, payload, err := readAnswer(p)
		return appendAnswer(nil, outcome, payload), err
	}
	return nil, &malformed{"kind"}
}

func TestMessagesComeThroughTheWire(t *testing.T) {
	for k, p := range samples(t) {
		if got, err := encodedAgain(p); err != nil || !bytes.Equal(got, p) {
			t.Errorf("%#x: %q, %v, want %q", k, got, err, p)
		}
		if k == kindData || k == kindTail || k == kindAnswer {
			continue // the rest is payload, or nothing
		}
		for end := range len(p) {
			if got, err := encodedAgain(p[:end]); err == nil && end > 0 && len(got) != end {
				t.Errorf("%#x: %d bytes of %d are taken for %q", k, end, len(p), got)
			}
		}
	}
}

// FuzzWire holds that no message makes the node panic or allocate beyond its length, and that what
// is accepted is what was sent.
func FuzzWire(f *testing.F) {
	for _, p := range samples(f) {
		f.Add(p)
	}
	f.Add(append([]byte{byte(kindSync)}, idA+"\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\x01"...))
	f.Fuzz(func(t *testing.T, p []byte) {
		again, err := encodedAgain(p)
		if err != nil {
			if m := (*malformed)(nil); !errors.As(err, &m) {
				t.Error(err)
			}
			return
		}
		// Varints have longer forms too: after one more turn nothing changes.
		if twice, err := encodedAgain(again); err != nil || !bytes.Equal(again, twice) {
			t.Errorf("%q becomes %q becomes %q, %v", p, again, twice, err)
		}
	})
}

func TestMembersArePackedAndBounded(t *testing.T) {
	for _, who := range []Member{{}, {ID: "a"}, {Info: []byte{0}}, {ID: strings.Repeat("i", MaxID), Info: bytes.Repeat([]byte{1}, MaxInfo)}} {
		record, err := packMember(&who)
		if err != nil || !validRecord(record) {
			t.Fatal(err)
		}
		who.Node = idA
		if got := unpackMember(idA, record); !reflect.DeepEqual(got, who) {
			t.Errorf("got %+v, want %+v", got, who)
		}
	}
	for field, who := range map[string]Member{
		"Member.ID": {ID: strings.Repeat("i", MaxID+1)}, "Member.Info": {Info: make([]byte, MaxInfo+1)},
	} {
		if _, err := packMember(&who); !errors.Is(err, ErrTooLong) || !strings.Contains(err.Error(), field) {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "\x05ab", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"} {
		if validRecord(bad) {
			t.Errorf("%q is a record", bad)
		}
	}
}
