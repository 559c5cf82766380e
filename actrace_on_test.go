//go:build race

package tcpio_test

// actRace says that the race detector slows everything down: loads are scaled to it.
const actRace = true
