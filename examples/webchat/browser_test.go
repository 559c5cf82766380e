//go:build linux && long

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
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

// A tab is a page of the chat in a browser.
type tab struct {
	t    *testing.T
	ctx  context.Context
	name string
}

// browse returns a function that starts a browser and shows the page in it.
func browse(t *testing.T) func(url, name string) *tab {
	path := chromium(t)
	return func(url, name string) *tab {
		ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
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
			case *runtime.EventExceptionThrown:
				t.Errorf("%s: %v", name, ev.ExceptionDetails)
			case *runtime.EventConsoleAPICalled:
				t.Logf("%s: %v", name, ev.Args)
			}
		})
		b := &tab{t, ctx, name}
		b.do(chromedp.Navigate(url), chromedp.WaitVisible("#name"))
		return b
	}
}

func (b *tab) do(actions ...chromedp.Action) {
	b.t.Helper()
	if err := chromedp.Run(b.ctx, actions...); err != nil {
		b.t.Fatalf("%s: %v", b.name, err)
	}
}

// when waits until an expression of JavaScript is true.
func (b *tab) when(expr string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, limit)
	defer cancel()
	// A time limit of Poll's own is kept by the page, whose clocks a test may have run faster.
	if err := chromedp.Run(ctx, chromedp.Poll(expr, nil, chromedp.WithPollingTimeout(0))); err != nil {
		var shown string
		_ = chromedp.Run(b.ctx, chromedp.Evaluate("document.documentElement.dataset.state + document.body.innerText", &shown))
		b.t.Fatalf("%s: %s: %v\n%.3000s", b.name, expr, err, shown)
	}
}

func (b *tab) join(room string) {
	b.t.Helper()
	b.do(chromedp.SendKeys("#name", b.name), chromedp.SetValue("#where", room), chromedp.Click("#helloform button"))
	b.state("online")
}

func (b *tab) state(name string) {
	b.t.Helper()
	b.when("document.documentElement.dataset.state === '" + name + "'")
}

func (b *tab) say(text string) { b.t.Helper(); b.do(chromedp.SendKeys("#text", text+"\r")) }

// said returns what the page shows of lines that were said, pending ones too.
func (b *tab) said() (lines []string) {
	b.t.Helper()
	b.do(chromedp.Evaluate("[...document.querySelectorAll('.said')].map(e => e.textContent)", &lines))
	return lines
}

// shows waits until the page shows n lines that were said, and none that waits to be.
func (b *tab) shows(n int) []string {
	b.t.Helper()
	b.when(fmt.Sprintf("document.querySelectorAll('#log .said').length >= %d && !document.querySelector('#pending li')", n))
	return b.said()
}

// notice has somebody write until the page shows it, since it does so for a short time only.
func (b *tab) notice(want string, write func()) {
	b.t.Helper()
	for got, end := "", time.Now().Add(limit); got != want; {
		if time.Now().After(end) {
			b.t.Fatalf("%s is shown %q", b.name, got)
		}
		write()
		b.do(chromedp.Evaluate("document.getElementById('typing').textContent", &got))
	}
}

// network has the browser believe that it has a network, or none.
func (b *tab) network(on bool) { b.t.Helper(); b.do(network.EmulateNetworkConditions(!on, 0, -1, -1)) }

// Two browsers talk; one loses its network in the middle, twice, and comes back; the server is
// replaced. Both show all lines once, and in the same order.
func TestBrowsers(t *testing.T) {
	open := browse(t)
	s := start(t, config{})
	line := newCutter(t, s.addr())
	ann, bob := open(s.page, "ann"), open("http://"+line.addr()+"/", "bob")
	ann.join("lobby")
	bob.join("lobby")
	ann.when("document.querySelectorAll('#people li').length === 2")
	for n := 1; n <= 50; n++ {
		who := ann
		if n%2 == 0 {
			who = bob
		}
		who.say(fmt.Sprint("line ", n))
		switch n {
		case 11:
			line.set(true)
			bob.when("document.documentElement.dataset.state !== 'online'")
		case 31:
			bob.network(false)
			bob.when("document.getElementById('state').textContent === 'Offline'")
		case 20, 40, 50:
			line.set(false)
			bob.network(true)
			bob.state("online")
			ann.shows(n)
			bob.shows(n)
		}
	}
	a, b := ann.shows(50), bob.shows(50)
	if strings.Join(a, "\n") != strings.Join(b, "\n") || len(a) != 50 {
		t.Errorf("ann has\n%q\nbob has\n%q", a, b)
	}
	for who := range 2 { // what each has said is in its order
		next := who + 1
		for _, l := range a {
			if l == fmt.Sprint("line ", next) {
				next += 2
			}
		}
		if next != 51+who {
			t.Errorf("line %d is not where it should be: %q", next, a)
		}
	}
	// One that reads what was said before is not carried away by a new line, and is shown that
	// there is one.
	const top = "document.querySelector('#log .said').getBoundingClientRect().top"
	bob.do(chromedp.Evaluate("document.getElementById('scroll').scrollTop = -1e6; window.was = "+top, nil))
	bob.when("document.getElementById('down').checkVisibility() === false")
	ann.say("below")
	bob.shows(51)
	bob.when("document.getElementById('down').checkVisibility() && Math.abs(" + top + " - window.was) < 2")
	bob.do(chromedp.Click("#down"))
	bob.when("document.getElementById('scroll').scrollTop === 0 && !document.getElementById('down').checkVisibility()")
	// Markup is text.
	ann.say("<img src=x onerror=alert(1)><b>bold</b>")
	if l := bob.shows(52); l[51] != "<img src=x onerror=alert(1)><b>bold</b>" {
		t.Error(l[51])
	}
	// A reload shows what was said, and the name is still its own.
	bob.do(chromedp.Reload())
	bob.state("online")
	if l := bob.shows(52); strings.Join(l[:50], "\n") != strings.Join(a, "\n") {
		t.Errorf("after a reload: %q", l)
	}
	// Another server in the place of the first: the page says that it is another, and shows nothing
	// twice.
	s.stop()
	ann.when("document.documentElement.dataset.state !== 'online'")
	ann.say("while the server is away")
	s = start(t, config{addr: s.addr()})
	ann.state("online")
	ann.when("document.querySelector('.gap') !== null")
	bob.state("online")
	ann.say("and again")
	if l := ann.shows(54); len(l) != 54 || l[52] != "while the server is away" || l[53] != "and again" {
		t.Errorf("after a restart: %q", l)
	}
	bob.when("[...document.querySelectorAll('.said')].at(-1)?.textContent === 'and again'")
	// A name that is taken, and then a room of one's own.
	cy := open(s.page, "bob")
	cy.do(chromedp.SendKeys("#name", "bob"), chromedp.Click("#helloform button"))
	cy.when("document.getElementById('helloproblem').textContent.includes('taken')")
	cy.do(chromedp.SetValue("#name", "cy"), chromedp.Click("#helloform button"))
	cy.state("online")
	cy.notice("ann is typing…", func() { ann.do(chromedp.SendKeys("#text", "w")) })
	cy.do(chromedp.SendKeys("#roomname", "den\r"))
	cy.when("document.getElementById('room').textContent === 'den'")
	bob.when("document.querySelectorAll('#people li').length === 2")
}

// A network that loses a page without a word: the page notices by itself, comes back, and shows
// each line once. Its clocks run ten times faster, since it asks every 15 s and waits for 10 s.
func TestBrowserIsLostWithoutAWord(t *testing.T) {
	open := browse(t)
	s := start(t, config{})
	relay := newCutter(t, s.addr())
	bob := s.dial()
	bob.join("bob", "lobby")
	ann := open("http://"+relay.addr()+"/", "ann")
	ann.do(chromedp.ActionFunc(func(ctx context.Context) error {
		_, err := page.AddScriptToEvaluateOnNewDocument("for (const name of ['setTimeout', 'setInterval']) {" +
			"const real = window[name]; window[name] = (f, ms, ...args) => real(f, ms / 10, ...args); }").Do(ctx)
		return err
	}), chromedp.Reload(), chromedp.WaitVisible("#name"))
	ann.join("lobby")
	ann.say("one")
	ann.shows(1)
	relay.lose()
	bob.say(1, "two")
	ann.say("three")
	ann.say("four")
	if got := strings.Join(ann.shows(4), " "); got != "one two three four" {
		t.Errorf("the page shows %q", got)
	}
	ann.say("five")
	bob.expect("came bob", "came ann", "say ann one", "say bob two", "say ann three", "say ann four", "say ann five")
	if got := strings.Join(ann.shows(5), " "); got != "one two three four five" {
		t.Errorf("the page shows %q", got)
	}
}

// A page that sends more than the server allows shows why it was closed, and loses no line by that.
func TestBrowserIsToldTheRate(t *testing.T) {
	open := browse(t)
	s := start(t, config{rate: 8})
	ann := open(s.page, "ann")
	ann.join("lobby")
	const lines = 20
	ann.do(chromedp.Evaluate(fmt.Sprintf(`for (let n = 1; n <= %d; n++) {
		document.getElementById("text").value = "line " + n;
		document.getElementById("say").requestSubmit();
	}`, lines), nil))
	ann.when("[...document.querySelectorAll('.gap')].some(e => e.textContent.includes('more than 8 frames a second'))")
	for n, l := range ann.shows(lines) {
		if l != fmt.Sprint("line ", n+1) {
			t.Errorf("line %d is %q", n+1, l)
		}
	}
}

// The page at the sizes of a phone and of a desktop, light and dark. With WEBCHAT_SHOTS the
// pictures go to that folder, for somebody to look at. What a machine can see is held here: nothing
// is wider than the window, what is to be touched is large enough, and each field has a label.
func TestLooks(t *testing.T) {
	open := browse(t)
	s := start(t, config{})
	people := map[string]*peer{}
	for _, name := range []string{"Marlene", "Jun-ho", "Ελένη"} {
		people[name] = s.dial()
		people[name].join(name, "lobby")
	}
	b := open(s.page, "ann")
	shoot := func(what string) {
		for _, size := range []struct {
			name          string
			width, height int64
			phone         bool
		}{{"phone", 390, 844, true}, {"small", 320, 568, true}, {"desktop", 1280, 800, false}} {
			for _, scheme := range []string{"light", "dark"} {
				var png []byte
				var bad []string
				b.do(emulation.SetDeviceMetricsOverride(size.width, size.height, 1, size.phone),
					emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{
						{Name: "prefers-color-scheme", Value: scheme},
						{Name: "prefers-reduced-motion", Value: "reduce"},
					}),
					// Frame by frame: the new size, and what follows from it, may take some.
					chromedp.Evaluate(`new Promise(done => requestAnimationFrame(function look(now) {
						this.end ??= now + 10000;
						const bad = [];
						if (document.documentElement.scrollWidth > innerWidth) bad.push("wider than the window");
						const s = document.getElementById("scroll");
						if (s.scrollTop !== 0) bad.push("the newest line is not in view");
						for (const e of document.querySelectorAll("button, input")) {
							const r = e.getBoundingClientRect();
							if (!e.checkVisibility({ visibilityProperty: true })) continue;
							if (r.height < 36 || r.width < 36) bad.push(e.id + " is small: " + r.width + " by " + r.height);
							if (e.tagName === "INPUT" && e.labels.length === 0) bad.push(e.id + " has no label");
							if (e.tagName === "BUTTON" && !e.textContent.trim() && !e.ariaLabel) bad.push(e.id + " has no name");
						}
						if (bad.length === 0 || now > this.end) done(bad); else requestAnimationFrame(look);
					}))`, &bad, func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }),
					chromedp.CaptureScreenshot(&png))
				for _, fault := range bad {
					t.Errorf("%s, %s: %s", what, size.name, fault)
				}
				if dir := os.Getenv("WEBCHAT_SHOTS"); dir != "" {
					if err := os.WriteFile(filepath.Join(dir, what+"-"+size.name+"-"+scheme+".png"), png, 0o644); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	shoot("hello")
	b.join("lobby")
	n := uint64(0)
	talk := func(name, text string) {
		n++
		people[name].say(n, text)
		b.when(fmt.Sprintf("document.querySelectorAll('#log .said').length === %d", n))
	}
	talk("Marlene", "Good morning! Is the new build out?")
	talk("Jun-ho", "Since ten minutes ago. Release notes are on the wiki.")
	talk("Jun-ho", "The reconnect fix is in it, too 🎉")
	n++
	b.say("Great, I will try it on the train: there is a tunnel every five minutes, so that is the best test there is.")
	b.shows(int(n))
	talk("Ελένη", "https://example.com/a/very/long/address/that/does/not/break/anywhere/because/it/has/no/spaces/in/it/at/all/0123456789")
	talk("Marlene", "<b>not bold</b>")
	n++
	b.say("Ha.")
	b.shows(int(n))
	b.notice("Ελένη is typing…", func() { people["Ελένη"].send(request{T: "typing"}) })
	shoot("chat")
	b.do(chromedp.EmulateViewport(390, 844), chromedp.Click("#menu"))
	shoot("drawer")
	b.do(chromedp.EmulateViewport(390, 844), chromedp.KeyEvent("\u001b"))
	b.when("!document.body.classList.contains('open')")
	s.stop()
	b.when("document.documentElement.dataset.state !== 'online'")
	b.say("I am in the tunnel now")
	b.when("document.querySelector('#pending li') !== null")
	shoot("offline")
}
