package cluster

import (
	"fmt"
	"strings"
)

// maxToken is the longest encoded name in bytes.
const maxToken = 400

const hexDigits = "0123456789ABCDEF"

// plain reports whether a byte stands for itself in an encoded name.
func plain(b byte) bool {
	return 'A' <= b && b <= 'Z' || 'a' <= b && b <= 'z' || '0' <= b && b <= '9' || b == '-' || b == '_'
}

// encodeName makes any string one token of a NATS subject, which is a legal key of its KV store
// too: letters, digits, - and _ stay, any other byte is =XX, the empty string is a single =. No two
// strings have one encoding.
func encodeName(s string) string {
	if s == "" {
		return "="
	}
	odd := 0
	for i := range len(s) {
		if !plain(s[i]) {
			odd++
		}
	}
	if odd == 0 {
		return s
	}
	var b strings.Builder
	b.Grow(len(s) + 2*odd)
	for i := range len(s) {
		if c := s[i]; plain(c) {
			b.WriteByte(c)
		} else {
			b.WriteByte('=')
			b.WriteByte(hexDigits[c>>4])
			b.WriteByte(hexDigits[c&15])
		}
	}
	return b.String()
}

// decodeName undoes encodeName; false for what that does not return.
func decodeName(token string) (string, bool) {
	if token == "=" {
		return "", true
	}
	if token == "" {
		return "", false
	}
	var b strings.Builder
	for i := 0; i < len(token); i++ {
		switch c := token[i]; {
		case plain(c):
			b.WriteByte(c)
		case c == '=' && i+2 < len(token):
			hi, lo := strings.IndexByte(hexDigits, token[i+1]), strings.IndexByte(hexDigits, token[i+2])
			if hi < 0 || lo < 0 || plain(byte(hi<<4|lo)) {
				return "", false
			}
			b.WriteByte(byte(hi<<4 | lo))
			i += 2
		default:
			return "", false
		}
	}
	return b.String(), true
}

// token encodes a name of the user's, of a topic or a key say.
func token(what, name string) (string, error) {
	t := encodeName(name)
	if len(t) > maxToken {
		return "", fmt.Errorf("cluster: %s: %w: it has %d bytes once encoded, %d are the limit", what, ErrName, len(t), maxToken)
	}
	return t, nil
}

// The subjects of a cluster, all under one prefix.
type subjects struct{ prefix string }

func newSubjects(name string) subjects { return subjects{"tcpio." + encodeName(name) + "."} }

func (s subjects) heartbeat() string           { return s.prefix + "hb" }
func (s subjects) node(id, what string) string { return s.prefix + "n." + id + "." + what }
func (s subjects) key(token string) string     { return s.prefix + "k." + token }

// topic returns the subject of a topic's place: "t." and its token.
func (s subjects) topic(place string) string { return s.prefix + place }
