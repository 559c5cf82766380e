package sched

import (
	"math/rand/v2"
	"testing"
)

// runModel runs model with strings of random operations. A failure logs the seed; put it in place
// of rand.Uint64 to see it again, or run the fuzz test of the same model.
func runModel(t *testing.T, model func(*testing.T, []byte)) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 50 {
		ops := make([]byte, rng.IntN(500))
		for i := range ops {
			ops[i] = byte(rng.Uint32())
		}
		model(t, ops)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// fuzzModel is runModel on strings that the fuzzer makes. It takes a function that runs for ten
// seconds for one that hangs, and the models look at everything behind each operation: long strings
// are cut.
func fuzzModel(f *testing.F, model func(*testing.T, []byte)) {
	f.Add([]byte{})
	f.Add([]byte("\x00\x04\x08\x01\x05\x02\x06\x03"))
	f.Fuzz(func(t *testing.T, ops []byte) { model(t, ops[:min(len(ops), 500)]) })
}
