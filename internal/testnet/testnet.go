// Package testnet is what the tests of tcpio share and what needs nothing of tcpio: peers, waits,
// leaks, logs, child processes, certificates and network namespaces. Tests inside package tcpio use
// it too, so it must not import tcpio; what knows a Listener is in test/harness.
package testnet
