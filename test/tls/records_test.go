//go:build linux

package tls_test

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// Types of records and messages; RFC 8446, 4 and 5.1.
const (
	recHandshake = 22
	recData      = 23
)

// A recordWriter sends what crypto/tls does not: it takes over a TLS 1.3 client's sending side
// behind the handshake. The tls.Conn still reads.
type recordWriter struct {
	t      testing.TB
	raw    net.Conn
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
}

// dialRecords connects and hands over.
func dialRecords(t testing.TB, l *tcpio.Listener) (*recordWriter, *tls.Conn) {
	t.Helper()
	var log bytes.Buffer
	config := testnet.ClientTLS()
	config.MinVersion, config.KeyLogWriter = tls.VersionTLS13, &log
	raw := testnet.Dial(t, l)
	c := tls.Client(raw, config)
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	if c.ConnectionState().CipherSuite != tls.TLS_AES_128_GCM_SHA256 {
		t.Skip("SKIPPED: this machine's crypto/tls prefers another cipher than AES-GCM: RECORDS ARE NOT TESTED")
	}
	w := &recordWriter{t: t, raw: raw}
	for line := range strings.Lines(log.String()) {
		if f := strings.Fields(line); f[0] == "CLIENT_TRAFFIC_SECRET_0" {
			secret, err := hex.DecodeString(f[2])
			if err != nil {
				t.Fatal(err)
			}
			w.use(secret)
		}
	}
	return w, c
}

// expand is HKDF-Expand-Label; RFC 8446, 7.1.
func (w *recordWriter) expand(label string, n int) []byte {
	label = "tls13 " + label
	info := binary.BigEndian.AppendUint16(nil, uint16(n))
	info = append(append(info, byte(len(label))), label...)
	out, err := hkdf.Expand(sha256.New, w.secret, string(append(info, 0)), n)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *recordWriter) use(secret []byte) {
	w.secret, w.seq = secret, 0
	block, err := aes.NewCipher(w.expand("key", 16))
	if err != nil {
		w.t.Fatal(err)
	}
	if w.aead, err = cipher.NewGCM(block); err != nil {
		w.t.Fatal(err)
	}
	w.iv = w.expand("iv", 12)
}

// record is one record around payload.
func (w *recordWriter) record(typ byte, payload []byte) []byte {
	inner := append(bytes.Clone(payload), typ)
	head := []byte{recData, 3, 3, 0, 0}
	binary.BigEndian.PutUint16(head[3:], uint16(len(inner)+w.aead.Overhead()))
	nonce := bytes.Clone(w.iv)
	for i := range 8 {
		nonce[4+i] ^= byte(w.seq >> (56 - 8*i))
	}
	w.seq++
	return w.aead.Seal(head, nonce, inner, head)
}

// keyUpdate is a KeyUpdate message, in as many records as it says; what follows is under the next
// key.
func (w *recordWriter) keyUpdate(request byte, records int) (b []byte) {
	msg := []byte{24, 0, 0, 1, request}
	if records > 1 {
		b = w.record(recHandshake, msg[:2])
		msg = msg[2:]
	}
	b = append(b, w.record(recHandshake, msg)...)
	w.use(w.expand("traffic upd", 32))
	return b
}

func (w *recordWriter) send(b ...[]byte) {
	w.t.Helper()
	if _, err := w.raw.Write(bytes.Join(b, nil)); err != nil {
		w.t.Fatal(err)
	}
}

// A key update that asks for one of the server's is answered in its place among what the server
// sends, alone, between data, in two records, and after the connection was idle.
func TestTLSKeyUpdateKeepsTheOrder(t *testing.T) {
	l, _ := harness.TLS(t, tcpio.ListenerOptions{}, harness.EchoActor)
	w, c := dialRecords(t, l)
	w.send(w.record(recData, []byte("one")))
	testnet.ExpectBytes(t, c, "one")
	w.send(w.keyUpdate(1, 1))
	w.send(w.record(recData, []byte("two")))
	testnet.ExpectBytes(t, c, "two")
	w.send(w.record(recData, []byte("three")), w.keyUpdate(1, 1), w.record(recData, []byte("four")), w.keyUpdate(0, 1),
		w.record(recData, []byte("five")))
	testnet.ExpectBytes(t, c, "threefourfive")
	half := w.keyUpdate(1, 2)
	w.send(half[:30]) // a record, and the beginning of the next
	w.send(half[30:], w.record(recData, []byte("six")))
	testnet.ExpectBytes(t, c, "six")
	for i := range 100 {
		w.send(w.record(recData, []byte{byte(i)}), w.keyUpdate(1, 1))
		testnet.ExpectBytes(t, c, []byte{byte(i)})
	}
}

// A key update in the middle of a large write: the writer waits for room, the answer goes out
// between two of its records.
func TestTLSKeyUpdateWithinABlockedWrite(t *testing.T) {
	want := testnet.Pattern(800 << 10)
	wrote := make(chan error, 1)
	l, _ := harness.TLS(t, tcpio.ListenerOptions{WriteBuffer: 64 << 10}, func(ev tcpio.Event) error {
		switch ev := ev.(type) {
		case tcpio.Opened:
			testnet.ShrinkSendBuffer(t, ev.Conn)
			go func() {
				_, err := ev.Conn.Write(want)
				wrote <- err
			}()
		case tcpio.Readable:
			_, _ = ev.Conn.TryRead(make([]byte, 100))
		}
		return nil
	})
	w, c := dialRecords(t, l)
	for off := 0; off < len(want); off += len(want) / 8 {
		w.send(w.record(recData, []byte("x")), w.keyUpdate(1, 1))
		testnet.ExpectBytes(t, c, want[off:off+len(want)/8])
	}
	if err := testnet.Await(t, "Write", wrote); err != nil {
		t.Error(err)
	}
}

// A peer that asks for answers and reads none is ended: what is queued for it stays bounded.
func TestTLSKeyUpdatesThatNobodyReadsEndTheConnection(t *testing.T) {
	l, ended := harness.TLS(t, tcpio.ListenerOptions{CloseTimeout: 50 * time.Millisecond}, func(ev tcpio.Event) error {
		switch ev := ev.(type) {
		case tcpio.Opened:
			testnet.ShrinkSendBuffer(t, ev.Conn)
			_, err := ev.Conn.TryWrite(make([]byte, 8<<20)) // from now on something is queued
			return err
		case tcpio.Readable:
			for {
				if _, err := ev.Conn.TryRead(make([]byte, 1000)); err != nil {
					return nil
				}
				if n := l8(ev.Conn); n > 128<<10 {
					t.Errorf("%d bytes of answers are queued", n)
				}
			}
		}
		return nil
	})
	w, _ := dialRecords(t, l)
	_ = w.raw.(*net.TCPConn).SetReadBuffer(4 << 10)
	// Data in between, or crypto/tls takes offence by itself. How many the sockets take before the
	// server looks at one is not its doing: until it ends the connection, or the peer's deadline.
	var err error
	for err == nil { // how soon it fails is the kernel's buffers' matter; the connection has a deadline
		b := append(w.record(recData, []byte("x")), w.keyUpdate(1, 1)...)
		_, err = w.raw.Write(b)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("key updates were taken without end")
	}
	if err := testnet.Await(t, "Closed", ended).Err(); err == nil || !strings.Contains(err.Error(), "key updates") {
		t.Errorf("Err is %v", err)
	}
}

// l8 is what is queued beyond the 8 MiB of the test.
func l8(c *tcpio.Conn) int { return c.Buffered() - 8<<20 }

// Records without data are passed over: no end of stream, no event that lies, and a flood of them
// ends the connection.
func TestTLSEmptyRecords(t *testing.T) {
	l, ended := harness.TLS(t, tcpio.ListenerOptions{}, harness.EchoActor)
	w, c := dialRecords(t, l)
	w.send(w.record(recData, nil))
	w.send(w.record(recData, nil), w.record(recData, []byte("data")), w.record(recData, nil))
	testnet.ExpectBytes(t, c, "data")
	w.send(w.record(recData, nil), w.record(recData, []byte("more")))
	testnet.ExpectBytes(t, c, "more")
	for range 40 {
		_, _ = w.raw.Write(w.record(recData, nil))
	}
	if err := testnet.Await(t, "Closed", ended).Err(); err == nil {
		t.Error("forty empty records in a row were taken")
	}
}

// Frames sees the same frames whatever records they come in, and the truncation behind a partial
// one.
func TestTLSFrames(t *testing.T) {
	lines := make(chan string, 100)
	l, ended := harness.TLS(t, tcpio.ListenerOptions{}, func(ev tcpio.Event) error {
		if r, ok := ev.(tcpio.Readable); ok {
			for line, err := range r.Conn.Frames(bufio.ScanLines) {
				if err != nil {
					lines <- "error: " + err.Error()
					return nil
				}
				lines <- string(line)
			}
		}
		return nil
	})
	w, _ := dialRecords(t, l)
	long := strings.Repeat("l", 50000)
	data := []byte("one\ntwo\n" + long + "\nthree\nunfinished")
	for cut := 1; len(data) > 0; cut = min(cut*5, 16000) {
		n := min(cut, len(data))
		w.send(w.record(recData, data[:n]))
		data = data[n:]
	}
	for _, want := range []string{"one", "two", long, "three"} {
		if got := testnet.Await(t, "a line", lines); got != want {
			t.Errorf("a line of %d bytes, want %d", len(got), len(want))
		}
	}
	w.raw.Close()
	if got := testnet.Await(t, "the error", lines); !strings.Contains(got, "close_notify") {
		t.Errorf("Frames ends with %q", got)
	}
	if err := testnet.Await(t, "Closed", ended).Err(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Err is %v", err)
	}
}
