package main

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// certFiles writes a certificate and its key as -tls-cert and -tls-key take them.
func certFiles(t *testing.T) (cert, key string) {
	t.Helper()
	c, err := selfSigned()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
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
	return write("cert.pem", "CERTIFICATE", c.Certificate[0]), write("key.pem", "PRIVATE KEY", der)
}

// redis-cli talks TLS to the program: without trust to a certificate that it has made, and with
// trust to one of files.
func TestRedisCLIOverTLS(t *testing.T) {
	cli := needProgram(t, "redis-cli")
	cert, key := certFiles(t)
	for _, tt := range []struct {
		name  string
		flags []string
		trust []string
	}{
		{"made", []string{"-tls"}, []string{"--tls", "--insecure"}},
		{"files", []string{"-tls-cert", cert, "-tls-key", key}, []string{"--tls", "--cacert", cert}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, addr := program(t, tt.flags...)
			run := func(stdin string, args ...string) string {
				t.Helper()
				return tool(t, cli, addr, stdin, append(tt.trust, args...)...)
			}
			if got := run("", "ping"); got != "PONG\n" {
				t.Errorf("ping: %q", got)
			}
			value := strings.Repeat("v", 500_000) // many records, each way
			if got := run(value, "-x", "set", "long"); got != "OK\n" {
				t.Errorf("set: %q", got)
			}
			if got := run("", "get", "long"); got != value+"\n" {
				t.Errorf("get: %d bytes", len(got))
			}
			if got := run(strings.Repeat("INCR n\r\n", 10_000), "--pipe"); !strings.Contains(got, "errors: 0, replies: 10000") {
				t.Errorf("--pipe: %q", got)
			}
			if got := run("", "get", "n"); got != "10000\n" {
				t.Errorf("behind --pipe: %q", got)
			}
		})
	}
}

func TestTLSFlags(t *testing.T) {
	cert, key := certFiles(t)
	for _, tt := range []struct {
		on        bool
		cert, key string
		tls, ok   bool
	}{
		{false, "", "", false, true},
		{true, "", "", true, true},
		{false, cert, key, true, true},
		{true, cert, "", false, false},
		{true, "", key, false, false},
		{true, cert, cert, false, false},
		{false, "nosuch", "nosuch", false, false},
	} {
		config, err := tlsConfig(tt.on, tt.cert, tt.key)
		if (err == nil) != tt.ok || (config != nil) != tt.tls {
			t.Errorf("%v: %v, %v", tt, config != nil, err)
		}
	}
}
