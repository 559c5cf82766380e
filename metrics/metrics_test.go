//go:build linux

package metrics

import (
	"context"
	"encoding/json"
	"errors"
	"expvar"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

const limit = 30 * time.Second

func TestMain(m *testing.M) { testnet.MainOfProgram(m) }

// serve runs an echo server until the end of the test.
func serve(t *testing.T, opts tcpio.ListenerOptions) *tcpio.Listener {
	t.Helper()
	opts.Addr = "127.0.0.1:0"
	opts.NewActor = func(*tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			if r, ok := ev.(tcpio.Readable); ok {
				var b [100]byte
				n, err := r.Conn.TryRead(b[:])
				if err != nil && err != tcpio.ErrWouldBlock {
					return err
				}
				_, _ = r.Conn.TryWrite(b[:n])
			}
			return nil
		})
	}
	l, err := tcpio.Listen(&opts)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- l.Serve(context.Background()) }()
	t.Cleanup(func() {
		l.Close()
		if err := <-done; err != nil && !errors.Is(err, net.ErrClosed) { // closed before Serve had begun
			t.Errorf("Serve: %v", err)
		}
	})
	return l
}

// dial connects, and has s echoed.
func dial(t *testing.T, addr, s string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(limit))
	if s != "" {
		if _, err := io.WriteString(c, s); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, len(s))); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after %v still not: %s", limit, what)
		}
	}
}

func gather(t *testing.T, g prometheus.Gatherer) map[string]*dto.MetricFamily {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	m := make(map[string]*dto.MetricFamily)
	for _, f := range families {
		m[f.GetName()] = f
	}
	return m
}

// fill gives every number in v, a struct, another value, and returns them with their paths.
func fill(v reflect.Value, path string, next *int, into map[float64]string) {
	for i := range v.NumField() {
		name := path + "." + v.Type().Field(i).Name
		switch f := v.Field(i); {
		case f.Kind() == reflect.Struct:
			fill(f, name, next, into)
		case f.CanUint():
			*next++
			f.SetUint(uint64(*next))
			into[float64(*next)] = name
		case f.CanInt():
			*next++
			f.SetInt(int64(*next))
			into[float64(*next)] = name
		}
	}
}

// To see it fail: add a field to tcpio.LoopStats or its parts, or leave one out of the collector.
func TestEveryNumberOfStatsIsExposedOnce(t *testing.T) {
	s := tcpio.Stats{Loops: make([]tcpio.LoopStats, 2)}
	want, next := make(map[float64]string), 1000
	for i := range s.Loops {
		fill(reflect.ValueOf(&s.Loops[i]).Elem(), fmt.Sprintf("Loops[%d]", i), &next, want)
	}
	sums := make(map[float64]string)
	all := make(map[float64]string)
	fill(reflect.ValueOf(&s).Elem(), "Stats", &next, all)
	for v, name := range all {
		if strings.HasPrefix(name, "Stats.LoopStats.") {
			sums[v] = name
		} else {
			want[v] = name
		}
	}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(newCollector(func() tcpio.Stats { return s }, nil))
	got := make(map[float64]string)
	for name, f := range gather(t, reg) {
		for _, m := range f.Metric {
			v := m.GetCounter().GetValue() + m.GetGauge().GetValue()
			if got[v] != "" {
				t.Errorf("%s and %s have the same value", name, got[v])
			}
			got[v] = name
			for _, l := range m.Label {
				if l.GetName() == "loop" && !strings.HasPrefix(want[v], "Loops["+l.GetValue()+"]") {
					t.Errorf("%s of loop %s shows %s", name, l.GetValue(), want[v])
				}
			}
		}
	}
	for v, name := range want {
		if got[v] == "" {
			t.Errorf("%s is not exposed", name)
		}
	}
	for v, name := range got {
		if want[v] == "" {
			t.Errorf("%s shows %v %s, which a sum over loops is or nothing has", name, v, sums[v])
		}
	}
}

func TestTheCollectorShowsWhatAListenerDoes(t *testing.T) {
	refuse := errors.New("no")
	admit := make(chan error, 10)
	l := serve(t, tcpio.ListenerOptions{Loops: 1, MaxConns: 2, Admit: func(netip.AddrPort) error {
		select {
		case err := <-admit:
			return err
		default:
			return nil
		}
	}})
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(NewCollector(l, prometheus.Labels{"listener": "a"}))
	admit <- refuse
	refused := dial(t, l.Addr().String(), "")
	if _, err := refused.Read(make([]byte, 1)); err == nil {
		t.Error("a refused connection reads")
	}
	one := dial(t, l.Addr().String(), "12345")
	dial(t, l.Addr().String(), "123")
	over := dial(t, l.Addr().String(), "")
	if _, err := over.Read(make([]byte, 1)); err == nil {
		t.Error("a refused connection reads")
	}
	one.Close()
	waitFor(t, "one is closed", func() bool { s := l.Stats(); return s.Closed == 1 && s.BytesOut == 8 })
	err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP tcpio_connections_accepted_total Connections served, adopted ones too.
# TYPE tcpio_connections_accepted_total counter
tcpio_connections_accepted_total{listener="a",loop="0"} 2
# HELP tcpio_connections_closed_total Accepted connections whose descriptor is gone.
# TYPE tcpio_connections_closed_total counter
tcpio_connections_closed_total{listener="a",loop="0"} 1
# HELP tcpio_connections_open Connections that have a descriptor.
# TYPE tcpio_connections_open gauge
tcpio_connections_open{listener="a",loop="0"} 1
# HELP tcpio_connections_refused_total Connections closed instead of served, by reason.
# TYPE tcpio_connections_refused_total counter
tcpio_connections_refused_total{listener="a",loop="0",reason="accept_rate"} 0
tcpio_connections_refused_total{listener="a",loop="0",reason="admit"} 1
tcpio_connections_refused_total{listener="a",loop="0",reason="max_conns"} 1
tcpio_connections_refused_total{listener="a",loop="0",reason="max_conns_per_ip"} 0
tcpio_connections_refused_total{listener="a",loop="0",reason="preface"} 0
# HELP tcpio_queued_bytes Bytes of output that wait for room in sockets.
# TYPE tcpio_queued_bytes gauge
tcpio_queued_bytes{listener="a"} 0
# HELP tcpio_received_bytes_total Bytes read from sockets.
# TYPE tcpio_received_bytes_total counter
tcpio_received_bytes_total{listener="a",loop="0"} 8
# HELP tcpio_sent_bytes_total Bytes taken by sockets.
# TYPE tcpio_sent_bytes_total counter
tcpio_sent_bytes_total{listener="a",loop="0"} 8
`), "tcpio_connections_accepted_total", "tcpio_connections_closed_total", "tcpio_connections_open",
		"tcpio_connections_refused_total", "tcpio_queued_bytes", "tcpio_received_bytes_total", "tcpio_sent_bytes_total")
	if err != nil {
		t.Error(err)
	}
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("against the conventions: %v, %v", problems, err)
	}
}

func TestTimeoutsAreShownByKind(t *testing.T) {
	l := serve(t, tcpio.ListenerOptions{Loops: 1, IdleTimeout: time.Millisecond})
	c := dial(t, l.Addr().String(), "")
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("an idle connection read %v", err)
	}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(NewCollector(l, nil))
	for _, m := range gather(t, reg)["tcpio_connections_timed_out_total"].Metric {
		want := 0.0
		if m.Label[0].GetValue() == "idle" {
			want = 1
		}
		if m.GetCounter().GetValue() != want {
			t.Errorf("%v, want %v", m, want)
		}
	}
}

// Two listeners in one registry, scraped while they serve and once they are closed.
func TestListenersAreToldApartByLabels(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	for _, name := range []string{"a", "b"} {
		l := serve(t, tcpio.ListenerOptions{Loops: 2})
		reg.MustRegister(NewCollector(l, prometheus.Labels{"listener": name}))
		dial(t, l.Addr().String(), name+" says")
		if name == "b" {
			l.Close()
		}
	}
	srv := httptest.NewServer(promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	defer srv.Close()
	text := get(t, srv.URL)
	sum := map[string]float64{}
	for _, m := range parse(t, text)["tcpio_received_bytes_total"].Metric {
		sum[m.Label[0].GetValue()] += m.GetCounter().GetValue()
	}
	if want := map[string]float64{"a": 6, "b": 6}; !maps.Equal(sum, want) {
		t.Errorf("bytes received: %v, want %v", sum, want)
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	hc := http.Client{Transport: new(http.Transport), Timeout: limit}
	defer hc.CloseIdleConnections()
	resp, err := hc.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", url, resp.Status, err)
	}
	return string(b)
}

func parse(t *testing.T, text string) map[string]*dto.MetricFamily {
	t.Helper()
	p := expfmt.NewTextParser(model.LegacyValidation)
	families, err := p.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return families
}

func TestVarIsStatsAsJSON(t *testing.T) {
	l := serve(t, tcpio.ListenerOptions{Loops: 2})
	dial(t, l.Addr().String(), "12345")
	waitFor(t, "five bytes are out", func() bool { return l.Stats().BytesOut == 5 })
	var v expvar.Var = Var(l)
	// Not at once: a handler that was held up counts in Blocked until it returns.
	waitFor(t, "the same figures", func() bool {
		var got tcpio.Stats
		if err := json.Unmarshal([]byte(v.String()), &got); err != nil {
			t.Fatalf("%s: %v", v, err)
		}
		return reflect.DeepEqual(got, l.Stats())
	})
}

// shape is what a dashboard relies on: names, kinds, help texts, and the labels of every sample.
func shape(families map[string]*dto.MetricFamily) (lines []string) {
	for name, f := range families {
		if !strings.HasPrefix(name, "tcpio_") {
			continue
		}
		lines = append(lines, fmt.Sprint(name, " ", f.GetType(), " ", f.GetHelp()))
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, fmt.Sprintf(" %s=%s", l.GetName(), l.GetValue()))
			}
			slices.Sort(labels)
			lines = append(lines, name+strings.Join(labels, ""))
		}
	}
	slices.Sort(lines)
	return lines
}

// examples/echo writes the text format by itself, and must not drift. To see it fail: rename a
// metric on one side.
func TestTheEchoExampleHasTheSameMetrics(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "echo")
	build := exec.Command("go", "build", "-o", bin, "./examples/echo")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	prog := exec.Command(bin, "-addr", "127.0.0.1:0", "-loops", "2", "-metrics", "127.0.0.1:0", "-route", "actor")
	stdout, err := prog.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := prog.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	defer func() {
		if !ended {
			_ = prog.Process.Kill()
			_ = prog.Wait()
		}
	}()
	var addr, metricsAddr string
	if _, err := fmt.Fscanf(stdout, "listening on %s\nmetrics on %s\n", &addr, &metricsAddr); err != nil {
		t.Fatal(err)
	}
	c := dial(t, addr, "12345")
	text := get(t, "http://"+metricsAddr+"/metrics")
	got := parse(t, text)
	l := serve(t, tcpio.ListenerOptions{Loops: 2})
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(NewCollector(l, nil))
	if got, want := shape(got), shape(gather(t, reg)); !slices.Equal(got, want) {
		t.Errorf("echo:\n%s\nthe module:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	sum := 0.0
	for _, m := range got["tcpio_received_bytes_total"].Metric {
		sum += m.GetCounter().GetValue()
	}
	if sum != 5 {
		t.Errorf("%v bytes received, want 5", sum)
	}
	if vars := get(t, "http://"+metricsAddr+"/debug/vars"); !json.Valid([]byte(vars)) || !strings.Contains(vars, `"BytesIn":5`) {
		t.Errorf("expvar: %s", vars)
	}
	c.Close()
	if err := prog.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ended = true
	if err := prog.Wait(); err != nil {
		t.Errorf("the program ended with %v", err)
	}
}
