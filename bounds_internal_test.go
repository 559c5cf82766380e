//go:build linux

package tcpio

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
	"time"
)

// More than 3 GiB queued over TLS: the product has more than 63 bits.
func TestTheShareOfWhatIsQueuedOverTLSDoesNotOverflow(t *testing.T) {
	check := func(size int, plain, sealed int64) {
		t.Helper()
		want := new(big.Int).Mul(big.NewInt(int64(size)), big.NewInt(plain))
		want.Add(want, big.NewInt(sealed-1)).Div(want, big.NewInt(sealed))
		if most := big.NewInt(math.MaxInt); want.Cmp(most) > 0 {
			want = most
		}
		if got := plainShare(size, plain, sealed); int64(got) != want.Int64() {
			t.Errorf("the share of %d in %d of %d is %d, want %d", size, plain, sealed, got, want)
		}
	}
	for _, size := range []int64{0, 1, 1 << 20, 3<<30 + 1, 4 << 30, 1 << 40, math.MaxInt} {
		size := int(min(size, math.MaxInt))
		for _, plain := range []int64{0, 1, 3<<30 + 1, 1 << 40, math.MaxInt64} {
			for _, sealed := range []int64{1, 3<<30 + 22, 1 << 40, math.MaxInt64} {
				check(size, plain, sealed)
			}
		}
	}
	for range 10000 {
		check(rand.IntN(math.MaxInt), rand.Int64(), rand.Int64N(math.MaxInt64)+1)
	}
}

func TestALongWaitIsNotAShortOneOrForEver(t *testing.T) {
	for d, want := range map[time.Duration]int{
		math.MinInt64: -1, -1: -1, 0: 0, 1: 1, time.Millisecond: 1, time.Millisecond + 1: 2,
		time.Hour: 3600_000, math.MaxInt32 * time.Millisecond: math.MaxInt32, 1 << 62: math.MaxInt32,
		math.MaxInt64: math.MaxInt32, math.MaxInt64 - 1: math.MaxInt32,
	} {
		if got := waitMillis(d); got != want {
			t.Errorf("waitMillis(%d) = %d, want %d", d, got, want)
		}
	}
}
