package buf

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/rabbit-backend/tcpio/internal/sys"
)

// numbered returns n bytes that differ from those at other offsets of the same flow.
func numbered(off, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		k := off + i
		p[i] = byte(k) ^ byte(k>>8)*31 ^ byte(k>>16)*17
	}
	return p
}

// front returns what the queue has for one send.
func front(t *testing.T, q *Queue, limit int) []byte {
	var v sys.Vec
	q.Fill(&v, limit)
	var all []byte
	for _, s := range v.Segs[:v.N] {
		if s.Len == 0 {
			t.Fatal("an empty segment")
		}
		all = append(all, unsafe.Slice(s.Base, int(s.Len))...)
	}
	if v.N < min(sys.VecMax, len(q.segs)) && len(all) < limit {
		t.Fatalf("%d of %d segments filled in", v.N, len(q.segs))
	}
	return all
}

// sizes are chosen from by the models: those at which something changes.
var sizes = []int{1, 2, 3, 100, Small - 1, Small, Small + 1, 20000, Large - 1, Large, Large + 1, 3*Large + 7}

// runModel runs model with strings of random operations. A failure logs the seed; put it in place
// of rand.Uint64 to see it again, or run the fuzz test of the same model.
func runModel(t *testing.T, model func(*testing.T, []byte)) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 20 {
		ops := make([]byte, rng.IntN(60))
		for i := range ops {
			ops[i] = byte(rng.Uint32())
		}
		model(t, ops)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func fuzzModel(f *testing.F, model func(*testing.T, []byte)) {
	f.Add([]byte{})
	f.Add([]byte("\x00\x04\x08\x01\x05\x02\x06\x03"))
	f.Fuzz(func(t *testing.T, ops []byte) { model(t, ops[:min(len(ops), 200)]) })
}

func TestQueueIsBytesJoin(t *testing.T) { runModel(t, queueModel) }
func FuzzQueue(f *testing.F)            { fuzzModel(f, queueModel) }

// queueModel compares a Queue with one byte slice. An operation is what to do, and a size.
func queueModel(t *testing.T, ops []byte) {
	var pool Pool
	var q Queue
	var want []byte
	var shared []*Block
	off := 0
	for _, op := range ops {
		size := sizes[int(op>>3)%len(sizes)]
		switch op % 8 {
		case 0, 1, 2:
			p := numbered(off, size)
			off += size
			q.Append(&pool, p)
			want = append(want, p...)
			clear(p) // it is the caller's again
		case 3:
			q.Append(&pool, nil)
		case 4:
			p := numbered(off, size)
			off += size
			from := min(int(op), size-1)
			b := pool.Get(size)
			copy(b.Buf, p)
			b.Retain()
			shared = append(shared, b)
			q.Share(b, from, size)
			want = append(want, p[from:]...)
		case 5:
			n := min(size, len(want))
			q.Consume(&pool, n)
			want = want[n:]
		case 6:
			n := len(front(t, &q, size))
			q.Consume(&pool, n)
			want = want[n:]
		case 7:
			if op>>3 == 0 {
				q.Drop(&pool)
				want = nil
			}
		}
		if q.Len() != len(want) {
			t.Fatalf("%d bytes, want %d", q.Len(), len(want))
		}
		for _, limit := range []int{size, 1 << 20} {
			got := front(t, &q, limit)
			if len(got) > limit || !bytes.Equal(got, want[:min(len(got), len(want))]) {
				t.Fatalf("the first %d bytes, of at most %d, are not what was put in", len(got), limit)
			}
		}
	}
	q.Drop(&pool)
	for _, b := range shared {
		if n := b.refs.Load(); n != 1 {
			t.Fatalf("a shared block has %d references, want the test's own", n)
		}
	}
	var none *Queue
	if none.Len() != 0 || q.Len() != 0 {
		t.Fatal("an empty queue has bytes")
	}
}

// A block that other queues hold too is never appended to.
func TestSharedBlockIsNeverWrittenTo(t *testing.T) {
	var pool Pool
	b := pool.Get(10)
	copy(b.Buf, "sharedshared")
	b.Retain()
	b.Retain()
	var q1, q2 Queue
	q1.Share(b, 0, 6)
	q2.Share(b, 0, 6)
	q1.Append(&pool, []byte("one"))
	q2.Append(&pool, []byte("two"))
	if got := string(b.Buf[:12]); got != "sharedshared" {
		t.Errorf("the shared block is now %q", got)
	}
	for q, want := range map[*Queue]string{&q1: "sharedone", &q2: "sharedtwo"} {
		if got := string(front(t, q, Large)); got != want {
			t.Errorf("queue holds %q, want %q", got, want)
		}
		q.Drop(&pool)
	}
	if n := b.refs.Load(); n != 1 {
		t.Errorf("%d references are left, want the one of the test", n)
	}
}

// To see it fail: take a large block whatever the size.
func TestAQueueHoldsLittleMoreThanItsBytes(t *testing.T) {
	for _, size := range sizes {
		var pool Pool
		var q Queue
		for q.Len() < 10*Large {
			q.Append(&pool, make([]byte, size))
		}
		held := 0
		for b := range q.Blocks {
			held += len(b.Buf)
		}
		if held > 2*q.Len()+Large {
			t.Errorf("writes of %d bytes: %d bytes held for %d", size, held, q.Len())
		}
	}
}
