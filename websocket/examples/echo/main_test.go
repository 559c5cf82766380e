//go:build linux

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/rabbit-backend/tcpio/internal/testnet"
	tcpws "github.com/rabbit-backend/tcpio/websocket"
)

func TestMain(m *testing.M) { testnet.MainOfProgram(m) }

// The program, as it is built, on each route: it says where it listens, echoes, and at SIGTERM
// sends 1001 and ends with status 0.
func TestProgram(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "echo")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cert, key := testnet.CertificateFiles(t)
	pool := testnet.ClientTLS().RootCAs
	for _, args := range []string{
		"-route stream", "-route mailbox", "-route actor", "-route http", "-route actor -compress", "-route http -compress",
		"-route actor -max-message 100", "-route stream -cert " + cert + " -key " + key, "-route http -cert " + cert + " -key " + key,
	} {
		t.Run(strings.Join(strings.Fields(args)[:3-strings.Count(args, " ")%2], " "), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, bin, append(strings.Fields(args), "-addr", "127.0.0.1:0")...)
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			url, ok := strings.CutPrefix(strings.TrimSuffix(line, "/\n"), "listening on ")
			if !ok || err != nil {
				t.Fatal(line, err)
			}
			if secure := strings.Contains(args, "-cert"); strings.HasPrefix(url, "wss://127.0.0.1:") != secure {
				t.Error(url)
			}
			client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
			defer client.CloseIdleConnections()
			c, _, err := websocket.Dial(ctx, url+"/", &websocket.DialOptions{HTTPClient: client, CompressionMode: websocket.CompressionNoContextTakeover})
			if err != nil {
				t.Fatal(err)
			}
			defer c.CloseNow()
			c.SetReadLimit(1 << 20)
			for _, msg := range []string{"hello", strings.Repeat("x", 100), strings.Repeat("0123456789", 60000)} {
				kind := websocket.MessageText
				if len(msg) == 100 {
					kind = websocket.MessageBinary
				}
				if err := c.Write(ctx, kind, []byte(msg)); err != nil {
					t.Fatal(err)
				}
				k, got, err := c.Read(ctx)
				if strings.Contains(args, "-max-message") && len(msg) > 100 {
					if websocket.CloseStatus(err) != websocket.StatusMessageTooBig {
						t.Error(err)
					}
					c, _, err = websocket.Dial(ctx, url+"/", nil)
					if err != nil {
						t.Fatal(err)
					}
					defer c.CloseNow()
					break
				}
				if err != nil || k != kind || string(got) != msg {
					t.Fatalf("%v %v: %d bytes of %d", k, err, len(got), len(msg))
				}
			}
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if _, _, err := c.Read(ctx); websocket.CloseStatus(err) != websocket.StatusGoingAway {
				t.Error(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
	for _, args := range []string{"-route no", "-cert /nonexistent", "-cert /nonexistent -key /nonexistent",
		"-max-message 0", "-max-message -5", "-max-message 2000000000"} {
		flag, _, _ := strings.Cut(args, " ")
		if out, err := exec.Command(bin, strings.Fields(args)...).CombinedOutput(); err == nil || !strings.Contains(string(out), flag) {
			t.Errorf("%s: %v, %s", args, err, out)
		}
	}
}

// A peer that does not read what it sends for is held back on the stream, and loses nothing.
func TestStreamHoldsBack(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, w, config{addr: "127.0.0.1:0", route: "stream", opts: tcpws.Options{MaxMessage: 1 << 20}})
	}()
	line, _ := bufio.NewReader(r).ReadString('\n')
	c, _, err := websocket.Dial(ctx, strings.TrimSpace(strings.TrimPrefix(line, "listening on ")), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	c.SetReadLimit(1 << 20)
	const messages = 300
	msg := make([]byte, 100_000)
	go func() {
		for range messages {
			if err := c.Write(ctx, websocket.MessageBinary, msg); err != nil {
				t.Error(err)
			}
		}
	}()
	time.Sleep(200 * time.Millisecond) // until the server can take no more; without it less is tested, and the test passes
	for i := range messages {
		if _, p, err := c.Read(ctx); err != nil || len(p) != len(msg) {
			t.Fatal(i, len(p), err)
		}
	}
	if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Error(err)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
