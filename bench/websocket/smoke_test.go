package main

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	if !part() {
		os.Exit(m.Run())
	}
}

// Every server answers right at every workload, with few connections and for a short time.
func TestSmoke(t *testing.T) {
	if _, err := exec.LookPath("taskset"); err != nil {
		t.Skip(err)
	}
	if raceEnabled {
		t.Skip("the race detector makes the slowest of them too slow to answer within the time")
	}
	var out bytes.Buffer
	b := &bench{rounds: 1, seconds: 0.05, warm: 0.2, servers: servers, out: &out}
	for _, w := range workloads {
		w.conns, w.idle = min(w.conns, 20), min(w.idle, 50)
		b.workloads = append(b.workloads, w)
	}
	failed := b.run()
	b.report()
	if failed > 0 {
		t.Errorf("%d runs failed", failed)
	}
	for _, s := range servers {
		if n, want := strings.Count(out.String(), "\n| "+s.name+" |"), 10; n != want && !(s.noTLS && n == want-1) {
			t.Errorf("%s has %d tables of %d", s.name, n, want)
		}
	}
}
