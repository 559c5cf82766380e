//go:build linux

package contract

import (
	"bufio"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

func okActor(ev tcpio.Event) error {
	if r, ok := ev.(tcpio.Readable); ok {
		var b [10]byte
		switch n, err := r.Conn.TryRead(b[:]); err {
		case nil:
			_, _ = r.Conn.TryWrite(b[:n])
		case io.EOF:
			return err
		}
	}
	return nil
}

// What the hooks refuse, by nil, by an error or by a panic, is closed; the next connection is served.
func TestHooksRefuseByNilAndByPanic(t *testing.T) {
	for name, bad := range map[string]func() (tcpio.Actor, error){
		"nil actor":   func() (tcpio.Actor, error) { return nil, nil },
		"actor panic": func() (tcpio.Actor, error) { panic("in Actor") },
		"admit error": func() (tcpio.Actor, error) { return nil, errors.New("no") },
		"admit panic": func() (tcpio.Actor, error) { panic("in Admit") },
		"rate panic":  func() (tcpio.Actor, error) { panic("in Allow") },
	} {
		t.Run(name, func(t *testing.T) {
			log := new(testnet.Log)
			var mu sync.Mutex
			first := true
			try := func(hook string) (tcpio.Actor, error) {
				mu.Lock()
				defer mu.Unlock()
				if strings.Contains(name, hook) && first {
					first = false
					return bad()
				}
				return tcpio.ActorFunc(okActor), nil
			}
			l := harness.Serve(t, tcpio.ListenerOptions{
				Logger: slog.New(slog.NewTextHandler(log, nil)),
				Actor: func(*tcpio.Conn) tcpio.Actor {
					a, _ := try("actor")
					return a
				},
				Admit: func(netip.AddrPort) error {
					_, err := try("admit")
					return err
				},
				AcceptRate: allow(func() bool {
					_, err := try("rate")
					return err == nil
				}),
			})
			// A refusal may be as early as the dial.
			if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
				_ = c.SetDeadline(time.Now().Add(30 * time.Second))
				if n, err := c.Read(make([]byte, 1)); err == nil {
					t.Errorf("a refused peer read %d bytes", n)
				}
				c.Close()
			}
			c := testnet.Dial(t, l)
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Errorf("the next peer is not served: %v", err)
			}
			if logged := strings.Contains(log.String(), "panicked"); logged != strings.HasSuffix(name, "panic") {
				t.Errorf("the log is %q", log)
			}
		})
	}
}

// The body of a loop over Frames may tell the peer what is wrong before the connection closes.
func TestAFrameErrorCanBeToldToThePeer(t *testing.T) {
	errBad := errors.New("bad request")
	for name, tc := range map[string]struct {
		input string
		split bufio.SplitFunc
		want  error
		said  string
	}{
		"split":    {"bad", func([]byte, bool) (int, []byte, error) { return 0, nil, errBad }, errBad, "bad request"},
		"too long": {strings.Repeat("x", 200), bufio.ScanLines, bufio.ErrTooLong, "tcpio: frame longer than MaxFrame (100 bytes)"},
	} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan error, 1)
			l := harness.Serve(t, tcpio.ListenerOptions{
				MaxFrame: 100,
				Actor: func(*tcpio.Conn) tcpio.Actor {
					return tcpio.ActorFunc(func(ev tcpio.Event) error {
						switch ev := ev.(type) {
						case tcpio.Readable:
							for _, err := range ev.Conn.Frames(tc.split) {
								if err != nil {
									_, _ = io.WriteString(ev.Conn, "ERR "+err.Error()+"\n")
								}
							}
						case tcpio.Closed:
							ended <- ev.Conn.Err()
						}
						return nil
					})
				},
			})
			c := testnet.Dial(t, l)
			if _, err := io.WriteString(c, tc.input); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(c)
			if want := "ERR " + tc.said + "\n"; err != nil || string(got) != want {
				t.Errorf("the peer got %q, %v; want %q", got, err, want)
			}
			c.Close()
			if err := <-ended; !errors.Is(err, tc.want) {
				t.Errorf("Err is %v, want %v", err, tc.want)
			}
		})
	}
}
