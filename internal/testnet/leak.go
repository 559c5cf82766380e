//go:build linux

package testnet

import (
	"flag"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Main is TestMain's body: it runs the tests and fails if they leave a goroutine or a descriptor.
// collected are kinds of descriptors that the garbage collector may close, beside the package net's
// pipes: "socket" where a client of others' leaves it what it has dialed. tcpio's own descriptors
// are plain numbers, which it never closes.
// To see it fail: start a goroutine that blocks, or open a socket, in any test and leave it.
func Main(m *testing.M, collected ...string) {
	flag.Parse()
	parallel := flag.Lookup("test.fuzz").Value.String() == "" // a fuzzer's workers all compute
	flag.Visit(func(f *flag.Flag) { parallel = parallel && f.Name != "test.parallel" })
	if parallel {
		// What runs together merely waits, for limits of time and for slow peers: more of it than
		// there are processors. What measures the whole process is not parallel, and runs before.
		_ = flag.Set("test.parallel", "8")
	}
	slog.SetDefault(slog.New(slog.DiscardHandler)) // panics that tests make on purpose
	log.SetOutput(os.Stderr)                       // SetDefault takes it along
	startRuntimePoller()
	before, err := Descriptors()
	if err != nil {
		fmt.Fprintln(os.Stderr, "descriptors before the tests:", err)
		os.Exit(1)
	}
	code := m.Run()
	if code == 0 {
		if err := leaks(before, append(collected, "pipe")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func leaks(before map[int]string, collected []string) error {
	if err := goroutines(); err != nil {
		return err
	}
	// The package net keeps the pipes that it splices through until the garbage collector finds
	// that nothing holds one: no test has left them, and they go when it has run. What is not
	// collected may not take its time.
	for end := time.Now().Add(Limit); ; {
		after, err := Descriptors()
		if err != nil {
			return err
		}
		left, goes := newDescriptors(before, after, collected)
		if left == nil {
			return nil
		}
		if !goes || time.Now().After(end) {
			return fmt.Errorf("descriptors left by the tests: %s", strings.Join(left, ", "))
		}
		runtime.GC()
		time.Sleep(time.Millisecond)
	}
}

// newDescriptors lists what is in after and was not in before, and reports whether all are of the
// collected kinds.
func newDescriptors(before, after map[int]string, collected []string) (left []string, goes bool) {
	goes = true
	for _, fd := range slices.Sorted(maps.Keys(after)) {
		if before[fd] != after[fd] {
			left = append(left, fmt.Sprintf("%d -> %s", fd, after[fd]))
			kind, _, _ := strings.Cut(after[fd], ":")
			goes = goes && slices.Contains(collected, kind)
		}
	}
	return left, goes
}

// startRuntimePoller makes the Go runtime open the descriptors that it keeps for good.
func startRuntimePoller() {
	if ln, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		ln.Close()
	}
}

// Descriptors lists the open descriptors and what they are.
func Descriptors() (map[int]string, error) {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	fds := make(map[int]string)
	for _, e := range entries {
		target, err := os.Readlink(dir + "/" + e.Name())
		if err != nil {
			continue // the one that ReadDir itself had open
		}
		if fd, err := strconv.Atoi(e.Name()); err == nil {
			fds[fd] = target
		}
	}
	return fds, nil
}
