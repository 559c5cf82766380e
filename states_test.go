//go:build linux

package tcpio

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
)

// A step that the table of phases does not have is refused, and the connection stays as it is.
func TestPhasesRefuseWhatTheTableDoesNotHave(t *testing.T) {
	for from := range phases {
		for to := range phases {
			c := &Conn{phase: phase(from)}
			legal := slices.Contains(phases[from], phase(to))
			refused := func() (refused bool) {
				defer func() { refused = recover() != nil }()
				c.enterLocked(phase(to))
				return false
			}()
			if refused == legal || refused != (c.phase == phase(from)) {
				t.Errorf("from %v to %v: legal %v, refused %v, then %v", phase(from), phase(to), legal, refused, c.phase)
			}
		}
	}
}

// A life only goes forward: every step leads to a later phase.
func TestPhasesNeverGoBack(t *testing.T) {
	for from, next := range phases {
		for _, to := range next {
			if to <= phase(from) {
				t.Errorf("the table leads from %v back to %v", phase(from), to)
			}
		}
	}
}

// Every step of the table is one that a connection takes, by what its user and its listener do.
func TestConnectionTakesEveryStepOfTheTable(t *testing.T) {
	t.Parallel()
	r := listen(t, ListenerOptions{DrainTimeout: time.Hour, CloseTimeout: time.Hour})
	events := r.Events()
	r.serve()
	// Each function takes a connection to a phase, from any that leads there.
	to := map[phase]func(l *heldLife){
		phaseDraining: func(l *heldLife) { l.c.drain() },
		phaseDrained:  func(l *heldLife) { close(l.goOn); receive0(t, "Draining", l.told) },
		phaseClosing:  func(l *heldLife) { l.c.Close() },
		phaseReleased: func(l *heldLife) { l.c.Abort() },
		phaseGone:     func(l *heldLife) { close(l.letGo); receive0(t, "the descriptor's user has returned", l.left) },
	}
	var paths [][]phase
	var walk func(path []phase)
	walk = func(path []phase) {
		next := phases[path[len(path)-1]]
		if len(next) == 0 {
			paths = append(paths, path)
		}
		for _, p := range next {
			walk(append(slices.Clone(path), p))
		}
	}
	walk([]phase{phaseOpen})
	for _, path := range paths {
		t.Run(fmt.Sprint(path), func(t *testing.T) {
			peer := r.dial()
			defer peer.Close()
			l := &heldLife{c: receiveAs[Opened](t, events).Conn}
			l.begin(t)
			for _, p := range path[1:] {
				to[p](l)
				if got := phaseOf(l.c); got != p {
					t.Fatalf("the phase is %v, want %v", got, p)
				}
			}
			if !slices.Contains(path, phaseDrained) {
				close(l.goOn)
			}
		})
	}
}

// A heldLife is a connection whose descriptor is in use until letGo is closed, and whose actor is busy
// until goOn is.
type heldLife struct {
	c                       *Conn
	goOn, told, letGo, left chan struct{}
}

func (l *heldLife) begin(t *testing.T) {
	l.goOn, l.told, l.letGo, l.left = make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan struct{})
	busy, held := make(chan struct{}), make(chan struct{})
	raw, err := l.c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(l.left)
		if err := raw.Control(func(uintptr) { close(held); <-l.letGo }); err != nil {
			t.Error(err)
		}
	}()
	receive0(t, "the descriptor is in use", held)
	if err := errors.Join(l.c.Attach(ActorFunc(func(ev Event) error {
		switch ev.(type) {
		case Message:
			close(busy)
			<-l.goOn
		case Draining:
			close(l.told)
		}
		return nil
	})), l.c.Post("be busy")); err != nil {
		t.Fatal(err)
	}
	receive0(t, "the actor is busy", busy)
}
