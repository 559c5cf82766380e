//go:build !long

package websocket

// With -tags long some loads are larger.
const slowHandshakes, byteFragments = 1000, 500_000
