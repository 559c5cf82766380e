//go:build linux && long

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	cdpruntime "github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// chromium returns the path of a browser; without one the test is skipped before anything starts.
func chromium(t *testing.T) string {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skip("there is no Chromium")
	return ""
}

// A tab is the status page in a browser.
type tab struct {
	t   *testing.T
	ctx context.Context
}

func browse(t *testing.T, path, page string) *tab {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.WSURLReadTimeout(time.Minute))...)
	t.Cleanup(cancel)
	// It does not know all events of a newer browser, and says so.
	ctx, cancel = chromedp.NewContext(ctx, chromedp.WithErrorf(func(string, ...any) {}))
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx) // waits until the browser has ended
		cancel()
	})
	chromedp.ListenTarget(ctx, func(ev any) {
		switch ev := ev.(type) {
		case *cdpruntime.EventExceptionThrown:
			t.Errorf("%v", ev.ExceptionDetails)
		case *cdpruntime.EventConsoleAPICalled:
			t.Logf("%v", ev.Args)
		}
	})
	b := &tab{t, ctx}
	b.do(chromedp.Navigate(page))
	b.when("document.getElementById('live').dataset.state === 'live'")
	return b
}

func (b *tab) do(actions ...chromedp.Action) {
	b.t.Helper()
	if err := chromedp.Run(b.ctx, actions...); err != nil {
		b.t.Fatal(err)
	}
}

// when waits until an expression of JavaScript is true.
func (b *tab) when(expr string) {
	b.t.Helper()
	if err := chromedp.Run(b.ctx, chromedp.Poll(expr, nil, chromedp.WithPollingTimeout(patience))); err != nil {
		var page string
		_ = chromedp.Run(b.ctx, chromedp.Evaluate("document.body.innerText", &page))
		b.t.Fatalf("%s: %v\n%.3000s", expr, err, page)
	}
}

// shows waits until the card of an upstream is in that state.
func (b *tab) shows(addr, state string) {
	b.t.Helper()
	b.when(fmt.Sprintf(`[...document.querySelectorAll(".upstream")].some(e =>
		e.querySelector("b").textContent === %q && e.dataset.state === %q)`, addr, state))
}

// The page shows what happens, drains an upstream, and fits into windows of every size, light and
// dark. With BALANCER_SHOTS the pictures go to that folder, for somebody to look at.
func TestThePageShowsWhatHappensAndDrains(t *testing.T) {
	path := chromium(t)
	bs := named(t, "a", "b", "c", "d")
	s := start(t, fmt.Sprintf(`
listeners:
  web: {listen: '127.0.0.1:0', to: web}
  database: {listen: '127.0.0.1:0', to: database}
pools:
  web:
    balance: least_conns
    health: {interval: 50ms, timeout: 5s}
    upstreams:
      - {addr: '%s', max_conns: 8}
      - {addr: '%s', max_conns: 8}
      - {addr: '%s', drain: true}
  database:
    health: {interval: 50ms, timeout: 5s}
    upstreams: [{addr: '%s'}]
`, bs[0].addr(), bs[1].addr(), bs[2].addr(), bs[3].addr()))
	b := browse(t, path, s.page+"/")
	b.shows(bs[0].addr(), "up")
	b.shows(bs[2].addr(), "draining")

	// Connections, and bytes.
	var clients []*client
	for range 9 {
		clients = append(clients, s.dial("web"))
	}
	for _, c := range clients {
		c.ask("hello")
	}
	clients = append(clients, s.dial("database"))
	block := make([]byte, 64<<10)
	for i := range block {
		block[i] = 'x'
	}
	block[len(block)-1] = '\n'
	traffic, endTraffic := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for pause := time.Duration(0); traffic.Err() == nil; pause = (pause + 7*time.Millisecond) % (60 * time.Millisecond) {
			_ = clients[9].SetDeadline(time.Now().Add(patience))
			if _, err := clients[9].Write(block); err != nil {
				t.Error(err)
				return
			}
			if _, err := io.CopyN(io.Discard, clients[9].in, int64(len(block)+2)); err != nil {
				t.Error(err)
				return
			}
			time.Sleep(pause)
		}
	}()
	b.when("document.querySelector('#open .now').textContent === '10'")
	b.when("/[1-9].*B\\/s/.test(document.querySelector('#bytes .now .down').textContent)")

	// Draining by the page: the button does it, and its word takes it back.
	button := fmt.Sprintf(`button[data-upstream="%s"]`, bs[1].addr())
	b.do(chromedp.Click(button))
	b.shows(bs[1].addr(), "draining")
	if u := s.status().find(t, bs[1].addr()); u.State != "draining" {
		t.Errorf("the upstream is %s", u.State)
	}
	b.do(chromedp.Click(button))
	b.shows(bs[1].addr(), "up")

	// An upstream that goes is shown, with the reason, and so is a reload with a mistake.
	bs[1].stop()
	b.shows(bs[1].addr(), "down")
	b.when(`document.body.textContent.includes("connection refused")`)
	if shots := os.Getenv("BALANCER_SHOTS"); shots != "" {
		time.Sleep(20 * time.Second) // so that the pictures have something to show
	}
	b.looks("status")
	s.reload("listeners: {}\npols: {}\n")
	b.when(`!document.getElementById("problem").hidden && document.getElementById("problem").textContent.includes("pols")`)
	b.looks("problem")
	endTraffic()
	<-done
	for _, c := range clients {
		c.Close()
	}
	b.when("document.querySelector('#open .now').textContent === '0'")
	s.stop()
	b.when("document.getElementById('live').dataset.state === 'lost'")
}

// looks checks the page at several sizes, light and dark, and takes pictures.
func (b *tab) looks(what string) {
	b.t.Helper()
	for _, size := range []struct {
		name          string
		width, height int64
		phone         bool
	}{{"phone", 390, 844, true}, {"small", 320, 568, true}, {"desktop", 1280, 900, false}} {
		for _, scheme := range []string{"light", "dark"} {
			var png []byte
			var bad []string
			b.do(emulation.SetDeviceMetricsOverride(size.width, size.height, 1, size.phone),
				emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}),
				// Two frames: one for the new size, one for what follows from it.
				chromedp.Evaluate(`new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => {
					const bad = [];
					if (document.documentElement.scrollWidth > innerWidth) bad.push("wider than the window");
					for (const e of document.querySelectorAll("button")) {
						const r = e.getBoundingClientRect();
						if (r.height < 36 || r.width < 36) bad.push(e.textContent + " is small: " + r.width + " by " + r.height);
						if (!e.textContent.trim()) bad.push("a button without a word");
					}
					for (const e of document.querySelectorAll("svg.chart")) if (!e.ariaLabel) bad.push("a picture without a text");
					done(bad);
				})))`, &bad, func(p *cdpruntime.EvaluateParams) *cdpruntime.EvaluateParams { return p.WithAwaitPromise(true) }),
				chromedp.FullScreenshot(&png, 100))
			for _, fault := range bad {
				b.t.Errorf("%s, %s: %s", what, size.name, fault)
			}
			if dir := os.Getenv("BALANCER_SHOTS"); dir != "" {
				if err := os.WriteFile(filepath.Join(dir, what+"-"+size.name+"-"+scheme+".png"), png, 0o644); err != nil {
					b.t.Fatal(err)
				}
			}
		}
	}
}
