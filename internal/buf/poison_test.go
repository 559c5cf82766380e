//go:build tcpiodebug

package buf

import "testing"

func TestABlockThatWasGivenBackIsOverwritten(t *testing.T) {
	var p Pool
	b := p.Get(Tiny)
	clear(b.Buf)
	p.Put(b)
	for i, got := range b.Buf {
		if got != 0xDB {
			t.Fatalf("byte %d is %#x", i, got)
		}
	}
}
