//go:build linux

package testnet

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// pki is a certificate for localhost, 127.0.0.1 and Host, made for the test run, and a client's
// configuration that trusts it.
var pki = sync.OnceValues(func() (cert tls.Certificate, client *tls.Config) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.ParseIP(Host())},
		NotBefore:   time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		panic(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	cert = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
	return cert, &tls.Config{RootCAs: pool, ServerName: "localhost"}
})

// ServerTLS is a configuration with a certificate for localhost; its protocol is "echo".
func ServerTLS() *tls.Config {
	cert, _ := pki()
	return &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"echo"}}
}

// ClientTLS is a configuration that trusts ServerTLS.
func ClientTLS() *tls.Config {
	_, c := pki()
	return c.Clone()
}

// CertificateFiles writes the certificate of ServerTLS and its key, in PEM, and returns their paths.
func CertificateFiles(t testing.TB) (cert, key string) {
	t.Helper()
	c, _ := pki()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{
		cert: {Type: "CERTIFICATE", Bytes: c.Certificate[0]}, key: {Type: "PRIVATE KEY", Bytes: der},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// DialTLS is Dial with a handshake.
func DialTLS(t testing.TB, l Listener, config *tls.Config) *tls.Conn {
	t.Helper()
	c := tls.Client(Dial(t, l), config)
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	return c
}

// ClientHello is what a client sends first.
func ClientHello() []byte {
	hello := new(bytes.Buffer)
	_ = tls.Client(recorder{hello}, ClientTLS()).Handshake()
	return hello.Bytes()
}

// recorder is a peer that only listens.
type recorder struct{ w io.Writer }

func (r recorder) Write(p []byte) (int, error)      { return r.w.Write(p) }
func (r recorder) Read([]byte) (int, error)         { return 0, io.EOF }
func (r recorder) Close() error                     { return nil }
func (r recorder) LocalAddr() net.Addr              { return nil }
func (r recorder) RemoteAddr() net.Addr             { return nil }
func (r recorder) SetDeadline(time.Time) error      { return nil }
func (r recorder) SetReadDeadline(time.Time) error  { return nil }
func (r recorder) SetWriteDeadline(time.Time) error { return nil }
