//go:build linux

// Package relay tests what Conn.Relay promises: pairs that live, and pairs that end in every way.
package relay

import (
	"testing"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

func TestMain(m *testing.M) { testnet.Main(m) }
