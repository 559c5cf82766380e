//go:build linux

package contract

import (
	"bytes"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// The server in README echoes all that a half-closing client sends, however slowly that reads, and
// Ctrl-C ends it in order.
func TestTheServerInREADMELosesNothing(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("no go command")
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, program, _ := strings.Cut(string(readme), "```go\n")
	program, _, _ = strings.Cut(program, "```\n")
	dir := t.TempDir()
	source, binary, socket := filepath.Join(dir, "main.go"), filepath.Join(dir, "server"), filepath.Join(dir, "socket")
	const addr = `Addr: "127.0.0.1:7000"`
	if strings.Count(program, addr) != 1 {
		t.Fatalf("no %s in\n%s", addr, program)
	}
	program = strings.Replace(program, addr, `Network: "unix", Addr: `+strconv.Quote(socket), 1) // a port may be taken
	if err := os.WriteFile(source, []byte(program), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("go", "build", "-o", binary, source).CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	server := exec.Command(binary)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Wait() }()
	t.Cleanup(func() { _ = server.Process.Kill() })
	var peer net.Conn
	testnet.WaitFor(t, "the server", func() bool {
		peer, err = net.Dial("unix", socket)
		return err == nil
	})
	defer peer.Close()
	sent := testnet.Pattern(30 << 20)
	go func() {
		_, _ = peer.Write(sent)
		_ = peer.(*net.UnixConn).CloseWrite()
	}()
	got, err := io.ReadAll(peer)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes of %d, %v", len(got), len(sent), err)
	}
	if err := server.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := testnet.Await(t, "the end of the server", ended); err != nil {
		t.Error(err)
	}
}
