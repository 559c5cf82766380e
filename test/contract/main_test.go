//go:build linux

// Package contract tests what package tcpio's documentation promises, a subject in each file.
package contract

import (
	"testing"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

func TestMain(m *testing.M) { testnet.Main(m) }
