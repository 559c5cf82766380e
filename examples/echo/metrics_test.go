//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
)

// The names and the format are tested in the module tcpio/metrics, beside those of the client
// library.
func TestMetricsAreServedUntilTheEnd(t *testing.T) {
	for _, route := range []string{"stream", "mailbox", "actor", "legacy"} {
		t.Run(route, func(t *testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			r, w := io.Pipe()
			done := make(chan error, 1)
			go func() { done <- run(ctx, w, "127.0.0.1:0", 1, route, "127.0.0.1:0") }()
			out := bufio.NewReader(r)
			line := func(prefix string) string {
				s, err := out.ReadString('\n')
				if err != nil || !strings.HasPrefix(s, prefix) {
					t.Fatalf("%q, %v; want %q", s, err, prefix)
				}
				return strings.TrimSpace(strings.TrimPrefix(s, prefix))
			}
			addr, seen := line("listening on "), line("metrics on ")
			c := dial(t, addr)
			send(t, c, []byte("12345"))
			expect(t, c, []byte("12345"))
			hc := http.Client{Transport: new(http.Transport), Timeout: limit}
			defer hc.CloseIdleConnections()
			get := func(path string) string {
				t.Helper()
				resp, err := hc.Get("http://" + seen + path)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				b, err := io.ReadAll(resp.Body)
				if err != nil || resp.StatusCode != http.StatusOK {
					t.Fatalf("%s: %s, %v", path, resp.Status, err)
				}
				return string(b)
			}
			text := get("/metrics")
			for _, want := range []string{
				"# TYPE tcpio_received_bytes_total counter\n",
				"\ntcpio_received_bytes_total{loop=\"0\"} 5\n",
				"\ntcpio_connections_open{loop=\"0\"} 1\n",
				"\ntcpio_connections_timed_out_total{kind=\"idle\",loop=\"0\"} 0\n",
			} {
				if !strings.Contains(text, want) {
					t.Errorf("%q is not in\n%s", want, text)
				}
			}
			var vars struct {
				TCPIO map[string]struct{ BytesIn uint64 } `json:"tcpio"`
			}
			if err := json.Unmarshal([]byte(get("/debug/vars")), &vars); err != nil || vars.TCPIO[addr].BytesIn != 5 {
				t.Errorf("expvar: %+v, %v", vars, err)
			}
			cancel()
			expectEOF(t, c)
			c.Close()
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("run: %v", err)
				}
			case <-time.After(limit):
				t.Fatal("run does not end")
			}
			if c, err := net.Dial("tcp", seen); err == nil {
				c.Close()
				t.Error("the metrics server still accepts")
			}
		})
	}
}

func TestAMetricsAddressInUseIsAnError(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for _, route := range []string{"stream", "mailbox", "actor", "legacy"} {
		if err := run(context.Background(), io.Discard, "127.0.0.1:0", 1, route, ln.Addr().String()); err == nil {
			t.Errorf("%s: no error", route)
		}
	}
}

func TestEveryNumberHasItsName(t *testing.T) {
	var b strings.Builder
	writeMetrics(&b, tcpio.Stats{Panics: 24, Buffered: 18, MaxBuffered: 30, Blocked: 19, Refusing: 20, Loops: []tcpio.LoopStats{{
		Open: 1, Accepted: 2, Closed: 3, BytesIn: 4, BytesOut: 5, Events: 6, Posted: 7, Dialing: 28, DialsFailed: 29, HandshakesFailed: 8, HandlerErrors: 25, GroupSkips: 22,
		Refused:  tcpio.RefusedStats{Conns: 9, PerIP: 10, Rate: 11, Admit: 12, Preface: 26},
		Timeouts: tcpio.TimeoutStats{Idle: 13, Read: 14, Input: 23, Frame: 22, Write: 15, Preface: 27, Handshake: 16, Close: 17, Drain: 28, EOF: 21},
	}}})
	var got []string
	for line := range strings.Lines(b.String()) {
		if !strings.HasPrefix(line, "#") {
			got = append(got, strings.TrimSpace(line))
		}
	}
	want := []string{
		`tcpio_connections_open{loop="0"} 1`,
		`tcpio_connections_accepted_total{loop="0"} 2`,
		`tcpio_connections_closed_total{loop="0"} 3`,
		`tcpio_connections_refused_total{reason="max_conns",loop="0"} 9`,
		`tcpio_connections_refused_total{reason="max_conns_per_ip",loop="0"} 10`,
		`tcpio_connections_refused_total{reason="accept_rate",loop="0"} 11`,
		`tcpio_connections_refused_total{reason="admit",loop="0"} 12`,
		`tcpio_connections_refused_total{reason="preface",loop="0"} 26`,
		`tcpio_connections_timed_out_total{kind="idle",loop="0"} 13`,
		`tcpio_connections_timed_out_total{kind="read",loop="0"} 14`,
		`tcpio_connections_timed_out_total{kind="input",loop="0"} 23`,
		`tcpio_connections_timed_out_total{kind="frame",loop="0"} 22`,
		`tcpio_connections_timed_out_total{kind="write",loop="0"} 15`,
		`tcpio_connections_timed_out_total{kind="preface",loop="0"} 27`,
		`tcpio_connections_timed_out_total{kind="handshake",loop="0"} 16`,
		`tcpio_connections_timed_out_total{kind="close",loop="0"} 17`,
		`tcpio_connections_timed_out_total{kind="drain",loop="0"} 28`,
		`tcpio_connections_timed_out_total{kind="eof",loop="0"} 21`,
		`tcpio_dials_under_way{loop="0"} 28`,
		`tcpio_dials_failed_total{loop="0"} 29`,
		`tcpio_tls_handshakes_failed_total{loop="0"} 8`,
		`tcpio_handler_errors_total{loop="0"} 25`,
		`tcpio_group_skips_total{loop="0"} 22`,
		`tcpio_received_bytes_total{loop="0"} 4`,
		`tcpio_sent_bytes_total{loop="0"} 5`,
		`tcpio_events_total{loop="0"} 6`,
		`tcpio_posted_total{loop="0"} 7`,
		`tcpio_panics_total 24`,
		`tcpio_queued_bytes 18`,
		`tcpio_queued_bytes_limit 30`,
		`tcpio_blocked_handlers 19`,
		`tcpio_connections_refusing 20`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
