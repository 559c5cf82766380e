//go:build linux

package testnet

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"sync"
	"testing"
	"time"
)

// pki is a certificate for localhost, made for the test run, and a client's configuration that
// trusts it.
var pki = sync.OnceValues(func() (cert tls.Certificate, client *tls.Config) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
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

// DialTLS is Dial with a handshake.
func DialTLS(t testing.TB, l Listener, config *tls.Config) *tls.Conn {
	t.Helper()
	c := tls.Client(Dial(t, l), config)
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	return c
}
