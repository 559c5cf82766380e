package websocket

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/gobwas/ws"
)

const (
	opPing  = ws.OpPing
	opPong  = ws.OpPong
	opClose = ws.OpClose
)

// An input is what of a peer's input has not arrived whole, or has not been decoded yet. The zero
// value is nothing.
type input struct {
	hello bool          // Opened is for the next turn
	req   *http.Request // with hello
	rest  []byte        // undecoded: of the handshake's request, or what a turn has left

	head  [ws.MaxHeaderSize]byte
	nhead int // bytes of a header in head

	frame bool // a frame's payload is arriving
	skip  bool // it is not wanted
	h     ws.Header
	got   int    // bytes of the payload
	ctl   []byte // a control frame's

	message bool // a message's frames are arriving
	packed  bool // compressed
	pieces  bool // a part of it was delivered
	op      ws.OpCode
	since   int64 // when it began; 0 without MessageTimeout
	size    int   // of it, with the frame that is arriving
	msg     []byte
	text    textCheck

	unpacks  *unpacker // a whole message that is being decompressed, before rest
	unpackOp ws.OpCode
}

// idle reports whether nothing is kept.
func (in *input) idle() bool {
	return !in.hello && !in.frame && !in.message && in.nhead == 0 && len(in.rest) == 0 && in.unpacks == nil
}

// late reports whether the message has taken too long to arrive.
func (c *Conn) late() bool {
	in := c.in
	return in != nil && in.message && in.since != 0 && now()-in.since > int64(c.s.opts.MessageTimeout)
}

// largeRest is from how many missing bytes on a payload is read straight into its message.
const largeRest = 16 << 10

func (in *input) large() bool {
	return in.frame && !in.skip && !in.h.OpCode.IsControl() && int(in.h.Length)-in.got >= largeRest
}

// room returns memory behind the message for what is missing, and not much more than has arrived:
// what a header promises is not believed.
func (in *input) room() []byte {
	n := min(int(in.h.Length)-in.got, max(64<<10, len(in.msg)))
	in.msg = grown(in.msg, n)
	return in.msg[len(in.msg) : len(in.msg)+n]
}

// grown returns p with room for n more bytes.
func grown(p []byte, n int) []byte {
	if cap(p)-len(p) >= n {
		return p
	}
	q := make([]byte, len(p), max(len(p)+n, 2*len(p)))
	copy(q, p)
	return q
}

// need returns c.in, and makes it.
func (c *Conn) need() *input {
	if c.in == nil {
		c.in = new(input)
	}
	return c.in
}

// decode handles the frames in b, and keeps what is incomplete. It reports false if another turn
// has to go on.
func (t *turn) decode(w *window, b []byte) bool {
	c := t.c
	for len(b) > 0 {
		if in := c.in; in != nil && in.frame {
			n := min(len(b), int(in.h.Length)-in.got)
			if size := c.s.opts.PieceSize; size > 0 && !in.h.OpCode.IsControl() && !in.skip {
				if n = min(n, size-len(in.msg)); n == 0 {
					in.pieces = true
					t.piece(in.msg, in.op, false)
					in.msg = in.msg[:0]
					if t.halted() {
						return t.keep(b)
					}
					continue
				}
			}
			more := t.payload(b[:n], false)
			if b = b[n:]; !more {
				return t.keep(b)
			}
			continue
		}
		if t.work++; t.work > turnWork {
			t.comeAgain()
			return t.keep(b)
		}
		h, n, err := c.header(w, b)
		if n == 0 && err == nil {
			return true // kept: the rest of it has not arrived
		}
		if b = b[n:]; err != nil {
			return t.fail(ProtocolError, err.Error())
		}
		if !t.admit(h) {
			return false
		}
		length := int(h.Length)
		if in := c.in; length > len(b) || in != nil && in.message || !h.Fin || t.wantsPieces(h) {
			if !t.begin(h) {
				return t.keep(b)
			}
			continue
		}
		payload := b[:length:length]
		b = b[length:]
		if h.Masked {
			ws.Cipher(payload, h.Mask, 0)
		}
		if h.OpCode.IsControl() {
			if !t.control(h.OpCode, payload) {
				return t.keep(b)
			}
		} else if !t.whole(h.OpCode, h.Rsv1(), payload, false) {
			return t.keep(b)
		}
	}
	return true
}

func (t *turn) wantsPieces(h ws.Header) bool {
	size := t.c.s.opts.PieceSize
	return size > 0 && h.Length > int64(size) && !h.OpCode.IsControl()
}

// keep leaves b to another turn.
func (t *turn) keep(b []byte) bool {
	if len(b) > 0 && !t.c.inPhase(over) {
		t.c.need().rest = bytes.Clone(b)
	}
	return false
}

// headerSize is how many bytes the header has that b begins with; 2 if that cannot be seen yet.
func headerSize(b []byte) int {
	if len(b) < 2 {
		return 2
	}
	n := 2
	switch b[1] & 0x7f {
	case 126:
		n += 2
	case 127:
		n += 8
	}
	if b[1]&0x80 != 0 {
		n += 4
	}
	return n
}

// header decodes the header in front of b, of which earlier bytes may have been kept. n is how many
// bytes of b it has; 0 if it is incomplete, and then kept.
func (c *Conn) header(w *window, b []byte) (h ws.Header, n int, err error) {
	whole, had := b, 0
	if in := c.in; in != nil && in.nhead > 0 {
		had = in.nhead
		whole = in.head[:had+copy(in.head[had:], b)]
	}
	size := headerSize(whole)
	if len(whole) < size {
		in := c.need()
		in.nhead = copy(in.head[:], whole)
		return h, 0, nil
	}
	if had > 0 {
		c.in.nhead = 0
	}
	w.r.Reset(whole[:size])
	h, err = ws.ReadHeaderBuffer(&w.r, w.head[:])
	return h, size - had, err
}

// admit checks a frame's header. It reports false if the connection fails for it.
func (t *turn) admit(h ws.Header) bool {
	c, o := t.c, &t.c.s.opts
	state := ws.StateServerSide
	if c.client {
		state = ws.StateClientSide
	}
	if c.packs {
		state = state.Set(ws.StateExtended)
	}
	in := c.in
	if in != nil && in.message {
		state = state.Set(ws.StateFragmented)
	}
	if err := ws.CheckHeader(h, state); err != nil {
		return t.fail(ProtocolError, err.Error())
	}
	if h.Rsv2() || h.Rsv3() || h.Rsv1() && (h.OpCode.IsControl() || h.OpCode == ws.OpContinuation) {
		return t.fail(ProtocolError, "reserved bits")
	}
	if o.MaxRate > 0 && !c.spend(float32(o.MaxRate)) {
		return t.fail(PolicyViolation, fmt.Sprintf("more than %d frames a second", o.MaxRate))
	}
	if h.OpCode.IsControl() {
		return true
	}
	have, packed := 0, h.Rsv1()
	if in != nil && in.message {
		have, packed = in.size, in.packed
	}
	slack := 0
	if packed { // what cannot be compressed gets a little larger
		slack = 64 + o.MaxMessage>>8
	}
	switch {
	case h.Length > int64(o.MaxMessage)+int64(slack)-int64(have):
		return t.fail(MessageTooBig, fmt.Sprintf("message over %d bytes", o.MaxMessage))
	case h.Length > int64(o.MaxFrame)+int64(slack):
		return t.fail(MessageTooBig, fmt.Sprintf("frame over %d bytes", o.MaxFrame))
	case h.OpCode == ws.OpText && o.NoText:
		return t.fail(UnsupportedData, "text is not accepted")
	case h.OpCode == ws.OpBinary && o.NoBinary:
		return t.fail(UnsupportedData, "binary is not accepted")
	}
	return true
}

// spend takes a frame's token. Tokens come back at rate a second, rate of them at most.
func (c *Conn) spend(rate float32) bool {
	t := now()
	if c.filled == 0 {
		c.tokens = rate
	} else {
		c.tokens = min(rate, c.tokens+rate*float32(t-c.filled)/float32(time.Second))
	}
	c.filled = t
	if c.tokens < 1 {
		return false
	}
	c.tokens--
	return true
}

// begin notes a frame whose payload does not come at once, or belongs to a message of several.
func (t *turn) begin(h ws.Header) bool {
	in := t.c.need()
	in.frame, in.h, in.got = true, h, 0
	in.skip = false
	if !h.OpCode.IsControl() {
		in.skip = !t.c.inPhase(open)
		if h.OpCode != ws.OpContinuation {
			in.message, in.op, in.packed = true, h.OpCode, h.Rsv1()
			if in.since = 0; t.c.s.opts.MessageTimeout > 0 {
				in.since = now()
			}
		}
		in.size += int(h.Length)
	}
	if h.Length == 0 {
		return t.frameDone()
	}
	return true
}

// payload takes p, the next bytes of the frame that is arriving. With placed they are behind the
// message already. It reports false if the turn has to end.
func (t *turn) payload(p []byte, placed bool) bool {
	in := t.c.in
	if in.h.Masked {
		ws.Cipher(p, in.h.Mask, in.got)
	}
	in.got += len(p)
	switch {
	case in.h.OpCode.IsControl():
		in.ctl = append(in.ctl, p...)
	case in.skip:
	default:
		if placed {
			in.msg = in.msg[:len(in.msg)+len(p)]
		} else {
			in.msg = append(in.msg, p...)
		}
		if in.op == ws.OpText && !in.packed && !in.text.add(p) {
			return t.fail(InvalidPayload, "text is not UTF-8")
		}
	}
	if in.got == int(in.h.Length) {
		return t.frameDone()
	}
	return true
}

// frameDone handles a frame whose payload has arrived. It reports false if the turn has to end.
func (t *turn) frameDone() bool {
	c := t.c
	in := c.in
	in.frame = false
	if in.h.OpCode.IsControl() {
		p := in.ctl
		in.ctl = nil
		return t.control(in.h.OpCode, p)
	}
	if !in.h.Fin {
		return true
	}
	msg, op, packed, pieces, done := in.msg, in.op, in.packed, in.pieces, in.text.done()
	in.message, in.pieces, in.size, in.msg, in.text = false, false, 0, nil, textCheck{}
	switch {
	case in.skip:
		return true
	case op == ws.OpText && !packed && !done:
		return t.fail(InvalidPayload, "text ends inside a character")
	case pieces:
		t.piece(msg, op, true)
		return !t.halted()
	}
	return t.whole(op, packed, msg, true)
}

// piece delivers a part of a message.
func (t *turn) piece(p []byte, op ws.OpCode, last bool) {
	if t.c.inPhase(open) {
		t.deliver(Piece{t.c, p, op == ws.OpText, last})
	}
}

// whole delivers a message. It reports false if the turn has to end.
func (t *turn) whole(op ws.OpCode, packed bool, p []byte, checked bool) bool {
	c := t.c
	if !c.inPhase(open) {
		return true // what comes behind our Close frame is not wanted
	}
	t.work += frameCost
	if packed {
		return t.inflate(op, unpack(p))
	}
	if op == ws.OpText {
		if !checked && !utf8.Valid(p) {
			return t.fail(InvalidPayload, "text is not UTF-8")
		}
		t.deliver(Text{c, p})
	} else {
		t.deliver(Binary{c, p})
	}
	return !t.halted()
}

// inflate decompresses a part of a message, and delivers it if that was the last. It reports false
// if the turn has to end: another one follows if there is more.
func (t *turn) inflate(op ws.OpCode, u *unpacker) bool {
	c := t.c
	done, code := u.inflate(c.s.opts.MaxMessage)
	if !done && code == 0 {
		u.keep()
		in := c.need()
		in.unpacks, in.unpackOp = u, op
		t.comeAgain()
		return false
	}
	if code != 0 { // the memory is free before the peer can begin again
		u.free()
		if code == MessageTooBig {
			return t.fail(code, fmt.Sprintf("message over %d bytes", c.s.opts.MaxMessage))
		}
		return t.fail(code, "compressed data is corrupt")
	}
	defer u.free()
	return t.whole(op, false, u.z.b, false)
}

// control handles a control frame. It reports false if the turn has to end.
func (t *turn) control(op ws.OpCode, p []byte) bool {
	switch op {
	case opPing:
		t.work += frameCost
		t.c.pong(p)
	case opClose:
		return t.peerCloses(p)
	}
	return true
}

// peerCloses handles the peer's Close frame: nothing follows it.
func (t *turn) peerCloses(p []byte) bool {
	e := ending{code: NoStatus, by: Peer}
	if len(p) > 0 {
		if len(p) == 1 {
			return t.fail(ProtocolError, "a Close frame of one byte")
		}
		e.code, e.reason = Code(binary.BigEndian.Uint16(p)), string(p[2:])
		if !e.code.sendable() {
			return t.fail(ProtocolError, fmt.Sprintf("a Close frame with code %d", e.code))
		}
		if !utf8.ValidString(e.reason) {
			return t.fail(InvalidPayload, "the reason of a Close frame is not UTF-8")
		}
	}
	c := t.c
	t.lastWord(e)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failLocked(e)
	return false
}

// fail ends the connection for what the peer did wrong. It returns false. The peer knows the RFC,
// but not the limits here: a Close frame for one of those has a reason.
func (t *turn) fail(code Code, what string) bool {
	c, e := t.c, ending{code: code, by: Local, err: &FrameError{code, what}}
	if code != ProtocolError && code != InvalidPayload {
		e.reason = what
	}
	t.lastWord(e)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failLocked(e)
	return false
}

// A textCheck checks a text that arrives in parts. The zero value has seen none.
type textCheck struct {
	tail [utf8.UTFMax]byte // the beginning of a character
	n    int
}

// add reports whether the text can still be valid UTF-8 with p.
func (u *textCheck) add(p []byte) bool {
	for u.n > 0 && len(p) > 0 {
		u.tail[u.n] = p[0]
		u.n++
		p = p[1:]
		if utf8.FullRune(u.tail[:u.n]) {
			if !utf8.Valid(u.tail[:u.n]) {
				return false
			}
			u.n = 0
		}
	}
	for back := 1; back < utf8.UTFMax && back <= len(p); back++ {
		if i := len(p) - back; utf8.RuneStart(p[i]) {
			if !utf8.FullRune(p[i:]) {
				u.n = copy(u.tail[:], p[i:])
				p = p[:i]
			}
			break
		}
	}
	return utf8.Valid(p)
}

// done reports whether the text does not end inside a character.
func (u *textCheck) done() bool { return u.n == 0 }
