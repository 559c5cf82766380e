//go:build linux

// Package hazards tests what users of other epoll libraries ran into: facts of the kernel, of the
// runtime, and of processes that share a socket or the machine with the library.
package hazards

import (
	"testing"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

func TestMain(m *testing.M) { testnet.Main(m) }
