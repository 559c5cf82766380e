//go:build linux

package main

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestDrainingByThePage(t *testing.T) {
	bs := named(t, "a", "b")
	s := start(t, onePool(bs, ""))
	one, two := s.dial("main"), s.dial("main")
	one.ask("hello")
	two.ask("hello")
	s.drain("main", bs[0].addr(), true)
	for range 4 {
		if got := s.once("main"); got != "b" {
			t.Errorf("a connection goes to %s", got)
		}
	}
	s.reload(onePool(bs, "    retries: 1\n")) // does not undo it
	if u := s.status().find(t, bs[0].addr()); u.State != "draining" || u.Conns != 1 {
		t.Errorf("%+v", u)
	}
	one.ask("still here")
	two.ask("still here")
	s.drain("main", bs[0].addr(), false)
	s.when("it is up", func(st *status) bool { return st.find(t, bs[0].addr()).State == "up" })
}

// What another site's page could make a browser send changes nothing.
func TestThePageTakesNoOrdersFromElsewhere(t *testing.T) {
	bs := named(t, "a")
	s := start(t, onePool(bs, ""))
	form := "pool=main&upstream=" + bs[0].addr() + "&on=true"
	for _, c := range []struct {
		name, method, path, body string
		header                   map[string]string
		want                     int
	}{
		{"from another site", "POST", "/drain", form, map[string]string{"Origin": "http://evil.example"}, http.StatusForbidden},
		{"told so by the browser", "POST", "/drain", form, map[string]string{"Sec-Fetch-Site": "cross-site"}, http.StatusForbidden},
		{"by a name that leads here", "POST", "/drain", form, map[string]string{"Host": "evil.example"}, http.StatusMisdirectedRequest},
		{"the page, by such a name", "GET", "/", "", map[string]string{"Host": "evil.example:80"}, http.StatusMisdirectedRequest},
		{"by GET", "GET", "/drain?" + form, "", nil, http.StatusNotFound},
		{"in the address", "POST", "/drain?" + form, "", nil, http.StatusBadRequest},
		{"without a word what", "POST", "/drain", "pool=main&upstream=" + bs[0].addr(), nil, http.StatusBadRequest},
		{"of an upstream that is none", "POST", "/drain", "pool=main&upstream=x&on=true", nil, http.StatusNotFound},
		{"too long", "POST", "/drain", form + strings.Repeat("x", 64<<10), nil, http.StatusBadRequest},
		{"localhost", "GET", "/", "", map[string]string{"Host": "localhost:1"}, http.StatusOK},
		{"an IPv6 address", "GET", "/", "", map[string]string{"Host": "[::1]"}, http.StatusOK},
	} {
		req, err := http.NewRequest(c.method, s.page+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		if c.body != "" {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		for k, v := range c.header {
			req.Header.Set(k, v)
		}
		req.Host = req.Header.Get("Host")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != c.want {
			t.Errorf("%s: %d, want %d", c.name, resp.StatusCode, c.want)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	if u := s.status().find(t, bs[0].addr()); u.State != "up" {
		t.Errorf("it is %s", u.State)
	}
}

// metrics is what Prometheus gets.
func (s *served) metrics() string {
	s.t.Helper()
	resp, err := http.Get(s.page + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}

func TestMetrics(t *testing.T) {
	bs := named(t, "a")
	s := start(t, onePool(bs, ""))
	s.dial("main").ask("hello")
	s.when("its bytes are counted", func(st *status) bool { return st.find(t, bs[0].addr()).BytesUp == 6 })
	text := s.metrics()
	for _, want := range []string{
		`balancer_upstream_state{pool="main",state="up",upstream="` + bs[0].addr() + `"} 1`,
		`balancer_upstream_connections_open{pool="main",upstream="` + bs[0].addr() + `"} 1`,
		`balancer_upstream_bytes_total{direction="up",pool="main",upstream="` + bs[0].addr() + `"} 6`,
		`balancer_listener_connections_open{listener="main"} 1`,
		`balancer_listener_ends_total{end="idle",listener="main"} 0`,
		`balancer_config_reload_refused 0`,
		`tcpio_connections_open{listener="main",loop="0"}`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %s", want)
		}
	}
}
