package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	if !part() {
		os.Exit(m.Run())
	}
}

// Every kind of server delivers everything, with few clients and for a short time.
func TestSmoke(t *testing.T) {
	var out bytes.Buffer
	b := &bench{out: &out, kinds: kinds}
	b.small()
	if testing.Short() {
		b.kinds = []string{"cluster", "centrifuge"}
	}
	if err := b.run(); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, kind := range b.kinds {
		if n := strings.Count(out.String(), "\n| "+kind+" |"); n != 2 {
			t.Errorf("%s has %d rows of 2", kind, n)
		}
	}
	for line := range strings.Lines(out.String()) {
		if f := strings.Split(line, " | "); len(f) == 10 && f[8] != "missing" && f[8] != "0" {
			t.Errorf("deliveries are missing: %s", line)
		}
	}
	t.Log(out.String())
}
