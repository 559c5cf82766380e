package embedded

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"time"
)

// secretSize is that of the secret in a directory, in bytes.
const secretSize = 32

// certName is the name in the certificate that all who know a secret have.
const certName = "tcpio-embedded"

// A identity is what a process derives from the secret of a directory.
type identity struct {
	tls      *tls.Config // for both ends of a connection
	password string      // of routes, behind TLS
}

// newIdentity derives a key pair and a certificate. They are the same in every process, so each
// takes the certificate as the root of trust: the peer that shows it and proves to have its key
// knows the secret. Times that never end make it independent of the clock.
func newIdentity(secret []byte) (*identity, error) {
	seed, err := hkdf.Key(sha256.New, secret, nil, "tcpio embedded key", ed25519.SeedSize)
	if err != nil {
		return nil, fmt.Errorf("embedded: %w", err)
	}
	password, err := hkdf.Key(sha256.New, secret, nil, "tcpio embedded routes", 32)
	if err != nil {
		return nil, fmt.Errorf("embedded: %w", err)
	}
	key := ed25519.NewKeyFromSeed(seed)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: certName},
		DNSNames:     []string{certName},
		NotBefore:    time.Unix(0, 0),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(nil, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("embedded: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("embedded: %w", err)
	}
	trusted := x509.NewCertPool()
	trusted.AddCert(cert)
	return &identity{
		password: fmt.Sprintf("%x", password),
		tls: &tls.Config{
			MinVersion:   tls.VersionTLS13,
			Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key, Leaf: cert}},
			ServerName:   certName,
			RootCAs:      trusted,
			ClientCAs:    trusted,
			ClientAuth:   tls.RequireAndVerifyClientCert,
		},
	}, nil
}
