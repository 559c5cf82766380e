//go:build linux

package hazards

import (
	"bytes"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// To see it fail: leave out F_DUPFD_CLOEXEC in dup of internal/sys.
func TestExecutedChildInheritsNoDuplicate(t *testing.T) {
	before := inherited(t) // what this process has got itself
	l, events := harness.Manual(t, tcpio.ListenerOptions{Loops: 2})
	for i := range 3 {
		c, _ := harness.Open(t, l, events)
		tc, err := c.Hijack()
		if err != nil {
			t.Fatal(err)
		}
		harness.Expect[tcpio.Closed](t, events)
		if _, err := l.Adopt(tc); err != nil {
			t.Fatal(err)
		}
		c = harness.Expect[tcpio.Opened](t, events).Conn
		if i == 2 {
			break // which stays adopted
		}
		if tc, err = c.Hijack(); err != nil {
			t.Fatal(err)
		}
		defer tc.Close()
		harness.Expect[tcpio.Closed](t, events)
	}
	// A copy between two connections holds a pipe for as long as it lasts.
	from, _ := harness.Open(t, l, events)
	to, _ := harness.Open(t, l, events)
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		io.Copy(to, from)
	}()
	defer func() {
		from.Abort()
		testnet.Await(t, "the end of the copy", copied)
	}()
	if l.GetListener() == nil {
		t.Fatal("no listener")
	}
	for range 3 { // the copy may not have begun
		for held := range inherited(t) {
			if !before[held] {
				t.Errorf("the child holds %s", held)
			}
		}
	}
}

// inherited is what a child has above standard error, less the directory that ls has opened by
// itself.
func inherited(t *testing.T) map[string]bool {
	t.Helper()
	out, err := exec.Command("ls", "-l", "/proc/self/fd").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	held := make(map[string]bool)
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if n := len(f); n > 3 && f[n-2] == "->" && !strings.Contains("0 1 2", f[n-3]) && !strings.HasPrefix(f[n-1], "/proc/") {
			held[f[n-3]+" "+f[n-1]] = true
		}
	}
	return held
}

func TestExecutedChildInheritsNoDescriptor(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{Loops: 2})
	harness.Open(t, l, events)
	// What the child would hold is what its descriptors above standard error are; ls itself opens
	// the directory.
	out, err := exec.Command("ls", "-l", "/proc/self/fd").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for line := range bytes.Lines(out) {
		if s := string(line); strings.Contains(s, "socket:") || strings.Contains(s, "eventpoll") || strings.Contains(s, "eventfd") {
			t.Errorf("the child holds %s", strings.TrimSpace(s))
		}
	}
	if !slices.Contains(strings.Fields(string(out)), "0") {
		t.Errorf("the child's list lacks its standard input: %s", out)
	}
}
