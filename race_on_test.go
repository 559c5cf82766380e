//go:build race

package tcpio

const raceEnabled = true
