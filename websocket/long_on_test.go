//go:build long

package websocket

// With -tags long some loads are larger.
const slowHandshakes, byteFragments = 9000, 16 << 20
