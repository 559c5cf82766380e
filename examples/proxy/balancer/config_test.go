//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// frame is a right file but for what stands in the pool.
func frame(pool string) string {
	return "listeners:\n  a: {listen: ':7010', to: b}\npools:\n  b:\n    upstreams: [{addr: '127.0.0.1:1'}]\n" + pool
}

func TestAMistakeInAFileIsToldWithItsLine(t *testing.T) {
	for _, c := range []struct{ name, file, want string }{
		{"no YAML", "listeners: [\n", "1:"},
		{"an unknown key", "listener: {}\n", `1:1: unknown field "listener"`},
		{"an unknown key further down", frame("    retrys: 2\n"), `6:5: unknown field "retrys"`},
		{"a key twice", frame("    retries: 2\n    retries: 3\n"), `7:5: mapping key "retries" already defined at [6:5]`},
		{"a text for a number", frame("    retries: two\n"), "6:14: this has to be a whole number"},
		{"a fraction", frame("    retries: 1.5\n"), "6:14: this has to be a whole number, 1048576 at most"},
		{"a number in quotes", frame("    retries: '1'\n"), "6:14: this has to be a whole number"},
		{"a number beyond every integer", frame("    queue: 99999999999999999999\n"), "6:12: this has to be a whole number"},
		{"a number beyond int", frame("    queue: 18446744073709551615\n"), "6:12: pools.b.queue: has to be from 0 to 1048576"},
		{"a zero that is no default", frame("    eject: {failures: 0}\n"), "6:23: pools.b.eject.failures: has to be from 1 to 1048576"},
		{"a time of zero", frame("    queue_timeout: 0s\n"), "6:20: pools.b.queue_timeout: has to be above 0"},
		{"an interval of zero", frame("    health: {interval: 0s}\n"), "6:24: pools.b.health.interval: is below 10ms; -1s is no checks"},
		{"a list for a block", frame("    health: [1]\n"), "6:13: this has to be a block of keys and values"},
		{"a text for a list", "listeners:\n  a: {listen: ':1', to: b, accept_proxy_from: ten}\n", "2:47: this has to be a list"},
		{"a second document", frame("") + "---\nretrys: 1\n", "7:7: a second document is not read"},
		{"a number for a time", frame("    connect_timeout: 5\n"), `6:22: this has to be a time such as "1.5s" or "2m"`},
		{"a bad time", frame("    connect_timeout: 5 minutes\n"), `6:22: this has to be a time`},
		{"a time that is too long", frame("    connect_timeout: 25h\n"), "6:22: this time is longer than 24h0m0s"},
		{"a time below zero", frame("    queue_timeout: -1s\n"), "6:20: pools.b.queue_timeout: has to be above 0"},
		{"a number out of range", frame("    queue: -1\n"), "6:12: pools.b.queue: has to be from 0 to 1048576"},
		{"a balancer that is none", frame("    balance: random\n"),
			`6:14: pools.b.balance: "random" is none of "client_hash", "least_conns", "round_robin"`},
		{"when_down", frame("    when_down: panic\n"), `6:16: pools.b.when_down: "panic" is neither "keep" nor "reset"`},
		{"a health check", frame("    health:\n      interval: 1ms\n      rise: -1\n"), "7:17: pools.b.health.interval: is below 10ms"},
		{"bytes", frame("    health: {send: \"hex:0g\"}\n"), `6:20: behind "hex:"`},
		{"a list for a text", frame("    health: {send: [a]}\n"), "6:20: this has to be a text"},
		{"ejection", frame("    eject: {for: 10s, max: 5s}\n"), "6:28: pools.b.eject.max: is shorter than for"},
		{"an authority's file", frame("    tls: {ca: missing.pem}\n"), "6:15: pools.b.tls.ca: open "},
		{"no pool", "listeners: {a: {listen: ':1', to: b}}\n", "1:35: listeners.a.to: there is no pool \"b\""},
		{"no listener", "pools: {b: {upstreams: [{addr: 'a:1'}]}}\n", "1:1: listeners: there is none"},
		{"an empty file", "", "1:1: listeners: there is none"},
		{"no upstream", "listeners: {a: {listen: ':1', to: b}}\npools:\n  b: {balance: least_conns}\n", "3:"},
		{"an upstream without a port", "listeners: {a: {listen: ':1', to: b}}\npools:\n  b:\n    upstreams:\n      - addr: db1\n",
			`5:15: pools.b.upstreams[0].addr: "db1" is not of the form host:port`},
		{"an upstream twice", "listeners: {a: {listen: ':1', to: b}}\npools:\n  b:\n    upstreams:\n      - addr: a:1\n      - addr: a:1\n",
			`6:15: pools.b.upstreams[1].addr: "a:1" is in this pool already`},
		{"an address twice", "listeners:\n  a: {listen: ':1', to: b}\n  c: {listen: ':1', to: b}\npools: {b: {upstreams: [{addr: 'a:1'}]}}\n",
			`3:15: listeners.c.listen: the listener "a" has this address already`},
		{"a prefix", "listeners:\n  a: {listen: ':1', to: b, accept_proxy_from: [ten]}\n", "2:48: this has to be an address or a prefix"},
		{"a route to nowhere", "listeners:\n  a: {listen: ':1', routes: [{names: [x.org], to: c}]}\npools: {b: {upstreams: [{addr: 'a:1'}]}}\n",
			`2:51: listeners.a.routes[0].to: there is no pool "c"`},
		{"a route that takes all", "listeners:\n  a: {listen: ':1', routes: [{to: b}]}\npools: {b: {upstreams: [{addr: 'a:1'}]}}\n",
			"listeners.a.routes[0]: names or alpn has to say which connections it takes"},
		{"a name that is none", "listeners:\n  a: {listen: ':1', routes: [{names: ['*'], to: b}]}\npools: {b: {upstreams: [{addr: 'a:1'}]}}\n",
			`2:39: listeners.a.routes[0].names[0]: "*" is no server name`},
		{"a certificate", "listeners:\n  a: {listen: ':1', to: b, tls: {certificates: [{cert: x, key: y}]}}\npools: {b: {upstreams: [{addr: 'a:1'}]}}\n",
			"listeners.a.tls.certificates[0]: open "},
		{"a protocol that is never agreed on",
			"listeners:\n  a: {listen: ':1', routes: [{alpn: [h2], to: b}], tls: {certificates: []}}\npools: {b: {upstreams: [{addr: 'a:1'}]}}\n",
			"2:37: listeners.a.routes[0].alpn: tls.alpn has none of these"},
		{"a pool's name with a dot", "listeners: {a: {listen: ':1', to: x.y}}\npools:\n  x.y:\n    upstreams: [{addr: a}]\n",
			`4:24: pools.x.y.upstreams[0].addr: "a" is not of the form host:port`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, faults := parse([]byte(c.file), t.TempDir())
			if len(faults) == 0 {
				t.Fatalf("no mistake is found in\n%s", c.file)
			}
			var all []string
			for _, f := range faults {
				all = append(all, f.Error())
			}
			if text := strings.Join(all, "\n"); !strings.Contains("\n"+text, c.want) || strings.HasPrefix(text, "0:") {
				t.Errorf("got\n%s\nwant\n%s", text, c.want)
			}
		})
	}
}

func TestAllMistakesAreToldAtOnce(t *testing.T) {
	for name, c := range map[string]struct {
		pool string
		at   []fault // without texts
	}{
		"what the values mean": {"    balance: random\n    queue: -1\n    when_down: panic\n",
			[]fault{{line: 6, column: 14}, {line: 7, column: 12}, {line: 8, column: 16}}},
		"the form of keys and values": {"    retrys: 2\n    queue: 1.5\n    health: {send: [a], rise: two, ryse: 1}\n    tls: no\n    eject: 3\n",
			[]fault{{line: 6, column: 5}, {line: 7, column: 12}, {line: 8, column: 20}, {line: 8, column: 31}, {line: 8, column: 36},
				{line: 9, column: 10}, {line: 10, column: 12}}},
		"in a list": {"  c: {upstreams: [7, {addr: [], port: 1}, {addr: d:1, drain: 1}]}\n",
			[]fault{{line: 6, column: 19}, {line: 6, column: 29}, {line: 6, column: 33}, {line: 6, column: 62}}},
		"behind an anchor": {"    health: &h {rise: 1.5, fall: two}\n  c: {upstreams: [{addr: d:1}], health: *h}\n",
			[]fault{{line: 6, column: 23}, {line: 6, column: 34}}},
	} {
		_, faults := parse([]byte(frame(c.pool)), ".")
		var at []fault
		for _, f := range faults {
			at = append(at, fault{line: f.line, column: f.column})
		}
		if !slices.Equal(at, c.at) {
			t.Errorf("%s: %v", name, faults)
		}
	}
}

func TestDefaults(t *testing.T) {
	cfg, faults := parse([]byte(frame("")), ".")
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	p := cfg.Pools["b"]
	if p.Balance != roundRobin || p.Retries.n != 2 || p.Queue.n != 1024 || p.QueueTimeout.Duration != 5*time.Second ||
		p.ConnectTimeout.Duration != 2*time.Second || p.Health != (healthConfig{Interval: duration{Duration: 2 * time.Second},
		Timeout: duration{Duration: 2 * time.Second}, Rise: count{n: 2}, Fall: count{n: 2}}) || p.Eject.Failures.n != 3 || p.WhenDown != keepConns {
		t.Errorf("%+v", p)
	}
	if cfg.Drain.Duration != 30*time.Second || cfg.Listeners["a"].HelloTimeout.Duration != 10*time.Second {
		t.Errorf("%+v", cfg)
	}
	zero, faults := parse([]byte(frame("    retries: 0\n    queue: 0\n")), ".")
	if len(faults) > 0 || zero.Pools["b"].Retries.n != 0 || zero.Pools["b"].Queue.n != 0 {
		t.Errorf("%v: a zero that is written has become a default", faults)
	}
}

// The file that ships, and each one of the README's, has no mistake.
func TestTheExamplesHaveNoMistake(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	files := strings.Split(string(readme), "```yaml\n")[1:]
	if len(files) == 0 {
		t.Fatal("README.md has no configuration")
	}
	for _, f := range files {
		f, _, _ = strings.Cut(f, "```")
		folder := t.TempDir()
		writePair(t, folder, "example.org")
		if _, faults := parse([]byte(f), folder); len(faults) > 0 {
			t.Errorf("%v in\n%s", faults, f)
		}
	}
	if _, err := load("balancer.yaml"); err != nil {
		t.Error(err)
	}
}

func TestCheckAndBadArguments(t *testing.T) {
	good, bad := filepath.Join(t.TempDir(), "good.yaml"), filepath.Join(t.TempDir(), "bad.yaml")
	for path, text := range map[string]string{good: frame(""), bad: frame("    retrys: 1\n")} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		args      string
		out, want string // what is written, what the error says; "" is none
	}{
		{"-check -config " + good, "1 listeners, 1 pools: no mistake found", ""},
		{"-check -config " + bad, "", bad + `:6:5: unknown field "retrys"`},
		{"-check -config " + bad + ".none", "", "no such file"},
		{"", "", "is needed"},
		{"-config " + good + " -to a:1", "", "exclude each other"},
		{"-config " + good + " -listen :1", "", "-config and -listen exclude each other"},
		{"-check -to a:1", "", "-check is for -config"},
		{"-to a", "", "not of the form host:port"},
		{"-to a:1 -listen 7010", "", "not of the form host:port"},
		{"-to a:1 more", "", `what is "more"?`},
		{"-check", "", "is needed"},
	} {
		var out strings.Builder
		err := command(context.Background(), strings.Fields(c.args), &out, io.Discard, nil)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if !strings.Contains(out.String(), c.out) || !strings.Contains(text, c.want) || (text == "") != (c.want == "") {
			t.Errorf("%s: %q, %v", c.args, out.String(), err)
		}
	}
	for arg, want := range map[string]error{"-h": flag.ErrHelp, "-nope": errTold} {
		var told strings.Builder
		err := command(context.Background(), []string{arg}, io.Discard, &told, nil)
		if !errors.Is(err, want) || !strings.Contains(told.String(), "-config file") {
			t.Errorf("%s: %v, told %q", arg, err, told.String())
		}
	}
}

func FuzzAConfigurationIsReadOrRefused(f *testing.F) {
	f.Add(frame(""))
	f.Add(frame("    health: {send: \"a\\r\\n\", expect: b}\n    tls: {ca: x}\n"))
	f.Add("listeners: &a {x: {listen: ':1', to: y, routes: [{names: ['*.a'], to: z}]}}\npools: *a\n")
	f.Fuzz(func(t *testing.T, text string) {
		folder := t.TempDir()
		if cfg, faults := parse([]byte(text), folder); cfg == nil && len(faults) == 0 {
			t.Error("neither a configuration nor a mistake")
		}
	})
}
