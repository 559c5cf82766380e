package testnet

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// MainOfProgram is Main for the tests of a program, without what is for tests of the library: it
// fails if they leave a goroutine.
func MainOfProgram(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if err := goroutines(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// goroutines fails if there are some that do not end by themselves. net/http's server keeps a
// connection for half a second after it has closed its own side, which is longer than goleak waits.
func goroutines() error {
	for end := time.Now().Add(10 * time.Second); ; {
		err := goleak.Find()
		if err == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("goroutines left by the tests: %w", err)
		}
	}
}
