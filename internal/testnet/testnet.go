// Package testnet is what the tests of tcpio share and what needs nothing of tcpio: peers, waits,
// leaks, logs, child processes, certificates and network namespaces. Tests inside package tcpio use
// it too, so it must not import tcpio; what knows a Listener is in test/harness.
package testnet

import "runtime"

// Misdeeds are the ways in which user code does not return.
var Misdeeds = map[string]func(){
	"panic":  func() { panic("misdeed") },
	"Goexit": runtime.Goexit,
}
