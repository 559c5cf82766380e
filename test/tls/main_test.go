//go:build linux

// Package tls_test tests TLS: handshakes, data, records, time limits, and clients that are not
// Go's.
package tls_test

import (
	"testing"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

func TestMain(m *testing.M) { testnet.Main(m) }
