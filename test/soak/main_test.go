//go:build linux

// Package soak tests tcpio under load: clients of every kind at once, thousands of connections, and
// peers that never read. The flag -soak says how long TestSoak runs.
package soak

import (
	"testing"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

func TestMain(m *testing.M) { testnet.Main(m) }
