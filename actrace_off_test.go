//go:build !race

package tcpio_test

const actRace = false
