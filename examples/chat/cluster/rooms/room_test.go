//go:build linux

package rooms

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/cluster"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

func TestMain(m *testing.M) { testnet.MainOfProgram(m) }

// limit bounds each wait.
const limit = 30 * time.Second

func open(t *testing.T) *Chat {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	c, err := Open(ctx, Config{
		Dir: filepath.Join(t.TempDir(), "nodes"), History: 10, Grace: time.Hour,
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// connect returns a connection of a server whose actor does nothing.
func connect(t *testing.T) *tcpio.Conn {
	t.Helper()
	opened := make(chan *tcpio.Conn, 1)
	l, err := tcpio.Listen(&tcpio.ListenerOptions{
		Addr: testnet.Host() + ":0",
		NewActor: func(c *tcpio.Conn) tcpio.Actor {
			opened <- c
			return idle{}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- l.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-served:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(limit):
			t.Error("Serve does not end")
		}
	})
	testnet.Dial(t, l)
	select {
	case c := <-opened:
		return c
	case <-time.After(limit):
		t.Fatal("no connection")
		return nil
	}
}

type idle struct{}

func (idle) Receive(tcpio.Event) error { return nil }

// left is the record of a goodbye.
func left(name, id string) cluster.Record {
	return cluster.Record{Topic: "lobby", Data: mustJSON(Line{Kind: "left", Name: name, By: name, Of: id})}
}

// A name is free behind the line that says that its owner leaves, also when the room hears of her
// membership behind that.
func TestANameIsFreeBehindTheGoodbye(t *testing.T) {
	c := open(t)
	r, err := c.Enter("Lobby")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Exit()
	is := func(fact string, want bool) {
		t.Helper()
		if _, taken := r.Here(t.Context(), "bob", "ANN"); taken != want {
			t.Fatalf("%s: taken is %t", fact, taken)
		}
	}
	comes := func(id string) { r.moved(cluster.Presence{Joined: []cluster.Member{*member(id, "ann")}}) }
	goes := func(id string) { r.moved(cluster.Presence{Left: []cluster.Member{*member(id, "ann")}}) }
	one := r.Membership("ann")
	comes(one)
	is("she is there", true)
	two := r.Membership("ann")
	c.encode(left("ann", two))
	is("she has said goodbye elsewhere", false)
	comes(two)
	is("word of that comes late", false)
	goes(one)
	goes(two)
	is("she is gone", false)
	three := r.Membership("ann")
	comes(three)
	c.encode(left("ann", two))
	is("she is back", true)
	r.heard(Line{Kind: "left", Of: three, Lost: true})
	is("a node that was cut off took her for lost", true)
	goes(three)
	is("she is away", true)
	if was, _ := r.Here(t.Context(), "ann", "ann"); was != "ann" {
		t.Errorf("she was there as %q", was)
	}
}

// Whoever joins a room learns from its history who has left, and Goodbye and the lines of sweep are
// such lines.
func TestGoodbyesInTheHistory(t *testing.T) {
	c, conn := open(t), connect(t)
	r, err := c.Enter("lobby")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Exit()
	ann, cy := r.Membership("ann"), r.Membership("cy")
	all := []cluster.Member{*member(ann, "ann"), *member(cy, "cy")}
	r.moved(cluster.Presence{Joined: all})
	r.moved(cluster.Presence{Left: all[1:]})
	r.Goodbye("left", "ann", ann)
	r.say("", Line{Kind: "left", Name: "cy", By: "cy", Of: cy, Lost: true})
	lines := 0
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	me := r.Membership("bob")
	_, err = r.Join(ctx, asText, conn, nil, me, "bob", cluster.Pos{}, func(Line) error {
		lines++
		return nil
	})
	if err != nil || lines != 2 {
		t.Fatalf("%d lines, %v", lines, err)
	}
	for _, name := range []string{"ann", "cy"} {
		if _, taken := r.Here(t.Context(), "bob", name); taken {
			t.Errorf("%s is taken", name)
		}
	}
	if was, _ := r.Here(t.Context(), "bob", "bob"); was != "bob" {
		t.Errorf("bob is there as %q", was)
	}
}

// Who has given a name back does not answer for it, though the question was under way before that.
func TestOwnerIsWhoHasTheName(t *testing.T) {
	c, conn := open(t), connect(t)
	claim := func(name string) *cluster.Session {
		s, err := c.Claim(t.Context(), name, "by", conn)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	ann := claim("ann")
	asked := cluster.Posted{Key: ann.Key()}
	if got := string(Owner(asked, ann, "by")); got != "by" {
		t.Errorf("%q has the name", got)
	}
	anna := claim("anna")
	if got := Owner(asked, anna, "by"); len(got) > 0 {
		t.Errorf("behind another name %q has it", got)
	}
	ann.Release()
	for _, has := range []*cluster.Session{nil, ann} {
		if got := Owner(asked, has, "by"); got == nil || len(got) > 0 {
			t.Errorf("given back, %q has it", got)
		}
	}
}
