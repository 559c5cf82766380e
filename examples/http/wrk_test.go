//go:build linux && long

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestWrkWorksAgainstBoth(t *testing.T) {
	t.Parallel()
	wrk := needProgram(t, "wrk")
	// A pipeline of sixteen, every fourth request with a body.
	script := filepath.Join(t.TempDir(), "pipeline.lua")
	if err := os.WriteFile(script, []byte(`
init = function(args)
	local r = {}
	for i = 1, 16 do
		if i % 4 == 0 then
			r[i] = wrk.format("POST", "/upload", {}, string.rep("x", i * 100))
		else
			r[i] = wrk.format("GET", "/")
		end
	end
	batch = table.concat(r)
end
request = function() return batch end
`), 0o600); err != nil {
		t.Fatal(err)
	}
	requests := regexp.MustCompile(`(\d+) requests in`)
	servers(t, testConfig(), newMux(), func(t *testing.T, addr string) {
		t.Parallel()
		for _, args := range [][]string{
			{"-c", "64"},
			{"-c", "64", "-H", "Connection: close"},
			{"-c", "32", "-s", script},
		} {
			n := 0
			for end := time.Now().Add(limit); n < 100; { // a second may be short for that
				if time.Now().After(end) {
					t.Fatalf("wrk %v: %d requests", args, n)
				}
				out := output(t, wrk, append(append([]string{"-t", "2", "-d", "1s", "--timeout", "30s"}, args...), "http://"+addr+"/")...)
				m := requests.FindStringSubmatch(out)
				if m == nil || strings.Contains(out, "Non-2xx") || strings.Contains(out, "Socket errors") {
					t.Fatalf("wrk %v:\n%s", args, out)
				}
				more, err := strconv.Atoi(m[1])
				if err != nil {
					t.Fatal(err)
				}
				n += more
			}
		}
	})
}
