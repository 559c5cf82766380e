//go:build linux && long

package websocket

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
)

// The versions are exact, so that what a test run sees is what the next one sees.
var nodePackages = []string{"ws@8.18.3", "undici@6.21.3"}

// Node's clients get back what they send, and both sides agree on how it ends; see
// testdata/client.mjs.
func TestNodeClients(t *testing.T) {
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	install := exec.CommandContext(ctx, "npm", append([]string{"install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", dir}, nodePackages...)...)
	install.WaitDelay = time.Second // a child of npm's may hold the output open
	if out, err := install.CombinedOutput(); err != nil {
		t.Skipf("npm does not install: %v\n%.1000s", err, out)
	}
	script, err := filepath.Abs("testdata/client.mjs")
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewUnstartedServer(nil)
	web.StartTLS()
	defer web.Close()
	cert := filepath.Join(dir, "cert.pem")
	if err := os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	opts := Options{MaxMessage: 1 << 20, Subprotocols: []string{"p"}, Compress: true}
	secure := opts
	secure.NewActor = echoActor
	wss := start(t, tcpio.ListenerOptions{TLSConfig: &tls.Config{Certificates: web.TLS.Certificates}}, secure, nil)
	for route, s := range routes(t, opts) {
		t.Run(route, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			client := exec.CommandContext(ctx, "node", script, "ws://"+s.Listener().Addr().String()+"/", strconv.Itoa(opts.MaxMessage),
				"wss://"+wss.Listener().Addr().String()+"/", cert)
			client.Dir = dir
			out, err := client.CombinedOutput()
			if err != nil || strings.Count(string(out), "ok ") < 4 {
				t.Errorf("%v\n%s", err, out)
			} else {
				t.Logf("%s", out)
			}
		})
	}
}
