//go:build linux && long

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
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
			out := output(t, wrk, append(append([]string{"-t", "2", "-d", "1s", "--timeout", "30s"}, args...), "http://"+addr+"/")...)
			m := requests.FindStringSubmatch(out)
			if m == nil {
				t.Fatalf("wrk %v:\n%s", args, out)
			}
			if n, err := strconv.Atoi(m[1]); err != nil || n < 100 {
				t.Errorf("wrk %v: %s requests", args, m[1])
			}
			if strings.Contains(out, "Non-2xx") || strings.Contains(out, "Socket errors") {
				t.Errorf("wrk %v:\n%s", args, out)
			}
		}
	})
}
