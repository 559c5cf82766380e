//go:build linux

package testnet

import "runtime"

// Misdeeds are the ways in which user code does not return.
var Misdeeds = map[string]func(){
	"panic":  func() { panic("misdeed") },
	"Goexit": runtime.Goexit,
}

// Misbehave calls f on a goroutine of its own with each misdeed, which f must do.
func Misbehave(t T, f func(misdeed func())) {
	t.Helper()
	for how, misdeed := range Misdeeds {
		over := make(chan any, 1)
		go func() {
			returned := false
			defer func() {
				v := recover()
				if returned {
					v = "returned"
				}
				over <- v
			}()
			f(misdeed)
			returned = true
		}()
		want := any("misdeed")
		if how == "Goexit" {
			want = nil
		}
		if got := Receive(t, "the end of the goroutine", over); got != want {
			t.Errorf("%s came out as %v", how, got)
		}
	}
}
