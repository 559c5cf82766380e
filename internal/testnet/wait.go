package testnet

import (
	"context"
	"os/exec"
	"runtime"
	"sync"
	"testing"
	"time"
)

// Limit is how long a test waits for something that must happen. Only a failing test waits so long.
const Limit = 30 * time.Second

// T is what *testing.T, *testing.B and *rapid.T have in common.
type T interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// Receive takes the next value from ch. A closed channel fails the test.
func Receive[V any](t T, what string, ch <-chan V) V {
	t.Helper()
	v, ok := next(t, what, ch)
	if !ok {
		t.Fatalf("the channel was closed instead of: %s", what)
	}
	return v
}

// Await takes the next value from ch, or the zero value when ch is closed.
func Await[V any](t T, what string, ch <-chan V) V {
	t.Helper()
	v, _ := next(t, what, ch)
	return v
}

// AwaitClosed fails the test unless ch is closed with nothing in it.
func AwaitClosed[V any](t T, what string, ch <-chan V) {
	t.Helper()
	if v, ok := next(t, what, ch); ok {
		t.Fatalf("got a %T, %+v, want the end of the channel: %s", v, v, what)
	}
}

func next[V any](t T, what string, ch <-chan V) (v V, ok bool) {
	t.Helper()
	limit := time.NewTimer(Limit)
	defer limit.Stop()
	select {
	case v, ok = <-ch:
	case <-limit.C:
		late(t, Limit, what)
	}
	return v, ok
}

// WaitFor fails the test unless cond becomes true.
func WaitFor(t T, what string, cond func() bool) {
	t.Helper()
	WaitForUpTo(t, Limit, what, cond)
}

// WaitForUpTo is WaitFor with a limit of its own, for what may take longer than Limit.
func WaitForUpTo(t T, most time.Duration, what string, cond func() bool) {
	t.Helper()
	limit := time.NewTimer(most)
	defer limit.Stop()
	look := time.NewTicker(500 * time.Microsecond)
	defer look.Stop()
	for !cond() {
		select {
		case <-look.C:
		case <-limit.C:
			late(t, most, what)
		}
	}
}

// late fails the test and says what every goroutine does.
func late(t T, after time.Duration, what string) {
	t.Helper()
	stacks := make([]byte, 64<<10)
	t.Fatalf("after %v still not: %s\n%s", after, what, stacks[:runtime.Stack(stacks, true)])
}

// Context ends with the test, or when something has taken longer than Limit.
func Context(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), Limit)
	t.Cleanup(cancel)
	return ctx
}

// Together runs the functions at once and waits for them.
func Together(fs ...func()) {
	var wg sync.WaitGroup
	for _, f := range fs {
		wg.Go(f)
	}
	wg.Wait()
}

// Program returns the path of a program that a test needs, and skips the test if it is not
// installed. It comes before anything that the test starts. CI installs all of them.
func Program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("SKIPPED: %s is not installed, and this was not tried with it", name)
	}
	return path
}
