package cluster

import (
	"errors"
	"regexp"
	"strings"
	"testing"
)

var legal = regexp.MustCompile(`^[A-Za-z0-9_=-]+$`)

func TestNamesAreOneLegalToken(t *testing.T) {
	for name, want := range map[string]string{
		"":            "=",
		"room-1_A":    "room-1_A",
		"=":           "=3D",
		"a.b":         "a=2Eb",
		"t.*":         "t=2E=2A",
		">":           "=3E",
		"a b\r\nPUB":  "a=20b=0D=0APUB",
		"é":           "=C3=A9",
		"\x00\xff":    "=00=FF",
		"$JS.API.>":   "=24JS=2EAPI=2E=3E",
		"user ann/ü?": "user=20ann=2F=C3=BC=3F",
	} {
		if got := encodeName(name); got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
	for _, bad := range []string{"", "a.b", "=4", "==", "=41", "=2e", "a=", "é", "a b", "*"} {
		if name, ok := decodeName(bad); ok {
			t.Errorf("%q is the encoding of %q", bad, name)
		}
	}
}

func TestALongNameIsAnError(t *testing.T) {
	if _, err := token("Topic", strings.Repeat("a", maxToken)); err != nil {
		t.Error(err)
	}
	for _, name := range []string{strings.Repeat("a", maxToken+1), strings.Repeat("é", maxToken/6+1)} {
		if _, err := token("Topic", name); !errors.Is(err, ErrName) || !strings.Contains(err.Error(), "Topic") {
			t.Error(err)
		}
	}
}

// decode(encode(x)) = x for all x, so no two names have one encoding; and encode(decode(y)) = y.
func FuzzNames(f *testing.F) {
	for _, s := range []string{"", "=", "a.b", "=2E", "=2e", "*", ">", "a\r\nb", "é", "=41", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		enc := encodeName(s)
		if !legal.MatchString(enc) {
			t.Errorf("%q becomes %q", s, enc)
		}
		if dec, ok := decodeName(enc); !ok || dec != s {
			t.Errorf("%q becomes %q becomes %q, %v", s, enc, dec, ok)
		}
		if dec, ok := decodeName(s); ok && encodeName(dec) != s {
			t.Errorf("%q is taken for the encoding of %q, which is %q", s, dec, encodeName(dec))
		}
	})
}

func TestPositions(t *testing.T) {
	t.Parallel()
	for _, p := range []Pos{{}, {"epoch", 1}, {"epoch", 1 << 63}, {"E_", 0}} {
		if got, err := ParsePos(p.String()); err != nil || got != p {
			t.Errorf("%v: %v, %v", p, got, err)
		}
	}
	for _, bad := range []string{"", "1", "-", "-1", "a-", "a-01", "a-+1", "a--1", "a b-1", "a-1 ", "=-1", "a-18446744073709551616", strings.Repeat("a", 23) + "-1"} {
		if got, err := ParsePos(bad); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}

func FuzzParsePos(f *testing.F) {
	for _, s := range []string{"0", "abc-1", "a-b-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := ParsePos(s); err == nil && p.String() != s {
			t.Errorf("%q is %+v, whose text is %q", s, p, p)
		}
	})
}
