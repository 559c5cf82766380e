//go:build !race

package testnet

// Race says that the race detector slows everything down: loads and limits are scaled to it.
const Race = false
