//go:build long

package tcpio

const longTests = true
