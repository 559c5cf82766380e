//go:build linux

package main

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// slowhttptest opens connections that send a header a line every ten seconds (slowloris):
// -header-timeout ends all of them, and the server answers others meanwhile.
func TestSlowHeadersAreCut(t *testing.T) {
	t.Parallel()
	slow := needProgram(t, "slowhttptest")
	curl := needProgram(t, "curl")
	cfg := testConfig()
	cfg.headerTimeout = 2 * time.Second // in which a whole request comes
	servers(t, cfg, newMux(), func(t *testing.T, addr string) {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		// Its exit status says nothing.
		out, err := exec.CommandContext(ctx, slow, "-H", "-c", "100", "-r", "500", "-i", "10", "-l", "60", "-p", "5",
			"-u", "http://"+addr+"/").CombinedOutput()
		if ctx.Err() != nil {
			t.Fatalf("%v; %v\n%s", ctx.Err(), err, out)
		}
		if got := string(out); !strings.Contains(got, "No open connections left") || !strings.Contains(got, "YES") ||
			strings.Contains(got, "mNO\x1b") {
			t.Errorf("slowhttptest says\n%q", out)
		}
		if got := output(t, curl, "-sS", "--fail", "http://"+addr+"/"); got != "hello\n" {
			t.Errorf("behind it: %q", got)
		}
	})
}
