//go:build linux

package tls_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// Clients that are not Go's.

// run returns what a client has printed until it ended, whatever its exit status. program is what
// needProgram returned.
func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*testnet.Limit) // slowhttptest alone may take most of one
	defer cancel()
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("%s %s: %v, %v\n%s", program, strings.Join(args, " "), ctx.Err(), err, out)
	}
	return string(out)
}

// pemFiles writes the certificate and key that the tests use.
func pemFiles(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	cert := testnet.ServerTLS().Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("cert.pem", "CERTIFICATE", cert.Certificate[0]), write("key.pem", "PRIVATE KEY", key)
}

// s_client's commands, a line each: a key update, one that asks for the server's too, a
// renegotiation, the end. What it has read together with one it drops, so that each line waits for
// what the one before it brings.
var sClientSays = map[string]string{"k": "KEYUPDATE", "K": "KEYUPDATE", "R": "RENEGOTIATING", "Q": "DONE"}

// sClient types lines into openssl s_client and expects those that are not its commands to be
// echoed. It returns all that was printed until the last one's answer, or with "Q" last until the
// end.
func sClient(t *testing.T, openssl string, l *tcpio.Listener, args []string, lines ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testnet.Limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, openssl, append([]string{"s_client", "-connect", l.Addr().String()}, args...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	var all strings.Builder
	scan := bufio.NewScanner(out)
	for _, line := range lines {
		if _, err := io.WriteString(in, line+"\n"); err != nil {
			t.Fatalf("%v behind\n%s", err, all.String())
		}
		want := line
		if says := sClientSays[line]; says != "" {
			want = says
		}
		for {
			if !scan.Scan() {
				t.Fatalf("s_client ended without %q\n%s", want, all.String())
			}
			all.WriteString(scan.Text() + "\n")
			if strings.TrimSpace(scan.Text()) == want {
				break
			}
		}
	}
	for lines[len(lines)-1] == "Q" && scan.Scan() { // it says so before it says close_notify
		all.WriteString(scan.Text() + "\n")
	}
	return all.String()
}

func wantIn(t *testing.T, out string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
}

func TestOpenSSLSpeaksBothVersions(t *testing.T) {
	openssl := testnet.Program(t, "openssl")
	certFile, _ := pemFiles(t)
	for flag, says := range map[string]string{"-tls1_2": "New, TLSv1.2", "-tls1_3": "New, TLSv1.3"} {
		t.Run(flag, func(t *testing.T) {
			l, ended := harness.TLS(t, tcpio.ListenerOptions{}, harness.EchoActor)
			out := sClient(t, openssl, l, []string{flag, "-alpn", "echo", "-servername", "localhost", "-CAfile", certFile},
				"hello", "again", "Q")
			wantIn(t, out, says, "ALPN protocol: echo", "Verify return code: 0 (ok)")
			if err := testnet.Await(t, "Closed", ended).Err(); err != nil {
				t.Errorf("Err is %v behind s_client's close_notify", err)
			}
		})
	}
}

func TestOpenSSLResumesSessions(t *testing.T) {
	openssl := testnet.Program(t, "openssl")
	t.Parallel()
	for _, flag := range []string{"-tls1_2", "-tls1_3"} {
		t.Run(flag, func(t *testing.T) {
			l, ended := harness.TLS(t, tcpio.ListenerOptions{}, harness.EchoActor)
			session := filepath.Join(t.TempDir(), "session")
			wantIn(t, sClient(t, openssl, l, []string{flag, "-sess_out", session}, "one", "Q"), "New, TLS")
			wantIn(t, sClient(t, openssl, l, []string{flag, "-sess_in", session}, "two", "Q"), "Reused, TLS")
			for i, resumed := range []bool{false, true} {
				if st := testnet.Await(t, "Closed", ended).TLS(); st == nil || st.DidResume != resumed {
					t.Errorf("connection %d: %+v", i, st)
				}
			}
		})
	}
	t.Run("-reconnect", func(t *testing.T) {
		l, _ := harness.TLS(t, tcpio.ListenerOptions{}, harness.EchoActor)
		out := sClient(t, openssl, l, []string{"-tls1_2", "-reconnect"}, "last", "Q")
		if n := strings.Count(out, "Reused, TLS"); n != 5 {
			t.Errorf("%d of 5 connections were resumed:\n%s", n, out)
		}
	})
}

func TestOpenSSLShowsItsCertificate(t *testing.T) {
	openssl := testnet.Program(t, "openssl")
	t.Parallel()
	certFile, keyFile := pemFiles(t)
	config := testnet.ServerTLS()
	config.ClientAuth, config.ClientCAs = tls.RequireAndVerifyClientCert, testnet.ClientTLS().RootCAs
	for _, flag := range []string{"-tls1_2", "-tls1_3"} {
		t.Run(flag, func(t *testing.T) {
			l, ended := harness.TLS(t, tcpio.ListenerOptions{TLSConfig: config}, harness.EchoActor)
			sClient(t, openssl, l, []string{flag, "-cert", certFile, "-key", keyFile}, "it is me", "Q")
			if st := testnet.Await(t, "Closed", ended).TLS(); st == nil || len(st.PeerCertificates) != 1 {
				t.Errorf("the server has seen %+v", st)
			}
			out := run(t, openssl, "s_client", "-connect", l.Addr().String(), flag, "-ign_eof")
			wantIn(t, out, map[string]string{"-tls1_2": "alert handshake failure", "-tls1_3": "certificate required"}[flag])
			testnet.WaitFor(t, "the refusal to be counted", func() bool { return l.Stats().HandshakesFailed == 1 })
		})
	}
}

func TestOpenSSLUpdatesKeys(t *testing.T) {
	openssl := testnet.Program(t, "openssl")
	l, ended := harness.TLS(t, tcpio.ListenerOptions{}, harness.EchoActor)
	sClient(t, openssl, l, []string{"-tls1_3"}, "before", "K", "after", "k", "behind", "K", "K", "k", "last", "Q")
	if err := testnet.Await(t, "Closed", ended).Err(); err != nil {
		t.Errorf("Err is %v", err)
	}
}

// A client that wants to renegotiate is refused and ends; crypto/tls's server never renegotiates.
func TestOpenSSLMayNotRenegotiate(t *testing.T) {
	openssl := testnet.Program(t, "openssl")
	l, ended := harness.TLS(t, tcpio.ListenerOptions{}, harness.EchoActor)
	sClient(t, openssl, l, []string{"-tls1_2"}, "before", "R")
	var op *net.OpError
	if err := testnet.Await(t, "Closed", ended).Err(); !errors.As(err, &op) {
		t.Errorf("Err is %v", err)
	}
	sClient(t, openssl, l, []string{"-tls1_2"}, "the next", "Q")
}

func TestCurlSpeaksTLS(t *testing.T) {
	program := testnet.Program(t, "curl")
	t.Parallel()
	certFile, _ := pemFiles(t)
	config := testnet.ServerTLS()
	config.NextProtos = []string{"http/1.1"}
	l, err := tcpio.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0", TLSConfig: config, DeferAccept: true})
	if err != nil {
		t.Fatal(err)
	}
	ln := l.NetListener()
	content := testnet.Pattern(5 << 20)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content) })
	mux.HandleFunc("PUT /", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body) // all of it before the answer: net/http does not do both at once
		if err == nil {
			_, _ = w.Write(b)
		}
	})
	srv := &http.Server{Handler: mux}
	done := make(chan error, 2)
	go func() { done <- l.Serve(context.Background()) }()
	go func() { done <- srv.Serve(ln) }()
	defer func() {
		srv.Close()
		l.Close()
		<-done
		<-done
	}()
	dir := t.TempDir()
	file, to := filepath.Join(dir, "content"), filepath.Join(dir, "got")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	u := "https://localhost:" + port + "/"
	curl := func(args ...string) string {
		t.Helper()
		return run(t, program, append([]string{"-sS", "--fail", "--noproxy", "*", "--http1.1", "--cacert", certFile,
			"--resolve", "localhost:" + port + ":127.0.0.1"}, args...)...)
	}
	for _, args := range [][]string{{"--tlsv1.3"}, {"--tls-max", "1.2"}, {"-T", file, "-T", file}} {
		// Two requests on one connection: %{num_connects} counts new ones.
		if got := curl(append(args, "-w", "%{num_connects} ", "-o", to, u, "-o", to, u)...); got != "1 0 " {
			t.Errorf("curl %v prints %q", args, got)
		}
		if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, content) {
			t.Errorf("curl %v: %d bytes, %v", args, len(got), err)
		}
		_ = os.Remove(to)
	}
}

// sslscan tries every version and cipher, and what other servers are vulnerable to.
func TestSSLScanFindsNothingOld(t *testing.T) {
	sslscan := testnet.Program(t, "sslscan")
	t.Parallel()
	l, _ := harness.TLS(t, tcpio.ListenerOptions{}, harness.EchoActor)
	out := run(t, sslscan, "--no-colour", l.Addr().String())
	wantIn(t, out, "SSLv2     disabled", "SSLv3     disabled", "TLSv1.0   disabled", "TLSv1.1   disabled",
		"TLSv1.2   enabled", "TLSv1.3   enabled", "Session renegotiation not supported", "TLSv1.2 not vulnerable to heartbleed",
		"TLSv1.3 not vulnerable to heartbleed", "Server supports TLS Fallback SCSV")
	testnet.Ping(t, testnet.DialTLS(t, l, testnet.ClientTLS()), "x")
}

// slowhttptest opens connections that send a line of a header every ten seconds (slowloris), over
// TLS: ReadStallTimeout ends all of them, and the server answers others meanwhile.
func TestSlowHTTPTestIsCutOverTLS(t *testing.T) {
	slowhttptest := testnet.Program(t, "slowhttptest")
	t.Parallel()
	blank := []byte("\r\n\r\n")
	header := func(data []byte, _ bool) (int, []byte, error) {
		if i := bytes.Index(data, blank); i >= 0 {
			return i + 4, data[:i], nil
		}
		return 0, nil, nil
	}
	l, _ := harness.TLS(t, tcpio.ListenerOptions{ReadStallTimeout: 3 * time.Second}, func(ev tcpio.Event) error {
		if r, ok := ev.(tcpio.Readable); ok {
			for _, err := range r.Conn.Frames(header) {
				if err != nil {
					return nil
				}
				if _, err := io.WriteString(r.Conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"); err != nil {
					return err
				}
			}
		}
		return nil
	})
	out := run(t, slowhttptest, "-H", "-c", "100", "-r", "500", "-i", "10", "-l", "100", "-p", "20", "-u", "https://"+l.Addr().String()+"/")
	wantIn(t, out, "No open connections left", "YES")
	if strings.Contains(out, "mNO\x1b") {
		t.Errorf("the server was not available:\n%s", out)
	}
	if n := l.Stats().Timeouts.Read; n < 50 {
		t.Errorf("ReadStallTimeout has ended %d connections", n)
	}
}
