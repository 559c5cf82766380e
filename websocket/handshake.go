package websocket

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gobwas/httphead"
	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsflate"

	"github.com/rabbit-backend/tcpio"
)

var requests = sync.Pool{New: func() any { return bufio.NewReader(nil) }}

// shake reads a handshake's request and answers it. It reports whether the handshake is done.
func (t *turn) shake(w *window) bool {
	c := t.c
	n, err := c.tc.TryRead(w.buf[:])
	if n == 0 {
		t.readFailed(err)
		return false
	}
	in := c.need()
	in.rest = append(in.rest, w.buf[:n]...)
	end := bytes.Index(in.rest, []byte("\r\n\r\n")) + 4
	if end < 4 && len(in.rest) <= maxHead {
		return false
	}
	if end < 4 || end > maxHead {
		c.refuse(&HandshakeError{http.StatusRequestHeaderFieldsTooLarge, fmt.Sprintf("over %d bytes", maxHead)})
		return false
	}
	br := requests.Get().(*bufio.Reader)
	defer requests.Put(br)
	br.Reset(bytes.NewReader(in.rest[:end]))
	r, err := http.ReadRequest(br)
	if err != nil {
		c.refuse(&HandshakeError{http.StatusBadRequest, "this is no HTTP request"})
		return false
	}
	r.RemoteAddr, r.TLS = c.tc.RemoteAddr().String(), c.tc.TLS()
	o, answer, no := c.s.handshake(r, nil, c.check)
	if no != nil {
		c.refuse(no)
		return false
	}
	o.rest = bytes.Clone(in.rest[end:])
	if _, err := c.tc.TryWrite(answer); err != nil {
		return false // the connection has failed: Closed follows
	}
	c.open(o)
	return true
}

// refuse answers a handshake that fails, and ends the connection.
func (c *Conn) refuse(no *HandshakeError) {
	c.in = nil
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refuseLocked(no)
}

func (c *Conn) refuseLocked(no *HandshakeError) {
	_, _ = c.tc.TryWrite(no.answer())
	c.overLocked()
}

// answer is what the peer gets, the last on its connection.
func (e *HandshakeError) answer() []byte {
	var b bytes.Buffer
	body := e.text() + "\n"
	resp := http.Response{ProtoMajor: 1, ProtoMinor: 1, StatusCode: e.Status, Header: http.Header{}, Close: true,
		ContentLength: int64(len(body)), Body: io.NopCloser(strings.NewReader(body))}
	e.header(resp.Header)
	resp.Header.Set("Content-Type", "text/plain; charset=utf-8")
	resp.Header.Set("X-Content-Type-Options", "nosniff")
	_ = resp.Write(&b) // a Buffer takes everything
	return b.Bytes()
}

// header sets what the status asks for.
func (e *HandshakeError) header(h http.Header) {
	switch e.Status {
	case http.StatusUpgradeRequired:
		h.Set("Sec-WebSocket-Version", "13")
	case http.StatusMethodNotAllowed:
		h.Set("Allow", http.MethodGet)
	}
}

// handshake checks a request and makes the answer to it, or says why it is refused. The user's
// Check is called by check.
func (s *Server) handshake(r *http.Request, header http.Header, check func(*http.Request) int) (o opened, answer []byte, no *HandshakeError) {
	if no = admissible(r); no != nil {
		return o, nil, no
	}
	var ext wsflate.Extension
	ext.Parameters = wsflate.DefaultParameters
	up := ws.HTTPUpgrader{Header: header}
	wanted := s.chosen(r)
	if wanted != "" {
		up.Protocol = func(p string) bool { return p == wanted }
	}
	if s.opts.Compress {
		up.Negotiate = func(offer httphead.Option) (httphead.Option, error) {
			accept, err := ext.Negotiate(offer)
			if err != nil {
				return httphead.Option{}, nil // a bad offer is declined (RFC 7692, 7.1)
			}
			return accept, nil
		}
	}
	var x exchange
	_, _, hs, err := up.Upgrade(r, &x)
	if err != nil {
		status := http.StatusBadRequest
		if rejected, ok := errors.AsType[*ws.ConnectionRejectedError](err); ok {
			status = rejected.StatusCode()
		}
		return o, nil, &HandshakeError{status, err.Error()}
	}
	if !s.originAllowed(r) {
		return o, nil, &HandshakeError{http.StatusForbidden, fmt.Sprintf("a page of %q may not connect", r.Header["Origin"])}
	}
	if s.opts.Check != nil {
		if status := check(r); status != 0 {
			if status < 300 || status > 599 {
				status = http.StatusForbidden
			}
			return o, nil, &HandshakeError{Status: status}
		}
	}
	_, o.packs = ext.Accepted()
	if o.req = r; hs.Protocol != "" {
		o.proto = wanted // hs.Protocol would keep the request's header in memory
	}
	o.peer = s.peerOf(r)
	return o, x.Bytes(), nil
}

// admissible checks what gobwas leaves out, and gives fields that came as lists the form that it
// compares with.
func admissible(r *http.Request) *HandshakeError {
	bad := func(why string) *HandshakeError { return &HandshakeError{http.StatusBadRequest, why} }
	if r.ProtoMajor > 1 {
		return &HandshakeError{http.StatusHTTPVersionNotSupported, "the handshake is of HTTP/1.1"}
	}
	if r.ContentLength != 0 || len(r.TransferEncoding) > 0 {
		return bad("the request has a body")
	}
	if strings.ContainsFunc(r.Host, notInHost) {
		return bad("bad Host")
	}
	for name := range r.Header {
		if strings.ContainsFunc(name, notToken) {
			return bad(fmt.Sprintf("bad name of a header field: %q", name))
		}
	}
	var nonce [24]byte // of 16 bytes, as base64
	keys := r.Header["Sec-Websocket-Key"]
	if len(keys) != 1 || len(keys[0]) != len(nonce) {
		return bad("bad Sec-WebSocket-Key")
	}
	if n, err := base64.StdEncoding.Decode(nonce[:], []byte(keys[0])); err != nil || n != 16 {
		return bad("bad Sec-WebSocket-Key")
	}
	if all := r.Header["Connection"]; len(all) > 1 {
		r.Header.Set("Connection", strings.Join(all, ", "))
	}
	for _, line := range r.Header["Upgrade"] {
		for p := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(p), "websocket") {
				r.Header.Set("Upgrade", "websocket")
				return nil
			}
		}
	}
	return nil
}

// notInHost reports whether r may not be in a Host.
func notInHost(r rune) bool {
	return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"/<>?@\^`+"`{|}#", r)
}

// check calls the user's Check. A panic refuses.
func (c *Conn) check(r *http.Request) (status int) {
	if c.guard(func() error { status = c.s.opts.Check(r); return nil }) != nil {
		return http.StatusInternalServerError
	}
	return status
}

// chosen is the first of the server's subprotocols that the client offers.
func (s *Server) chosen(r *http.Request) string {
	if len(s.opts.Subprotocols) == 0 {
		return ""
	}
	var offered []string
	for _, line := range r.Header.Values("Sec-WebSocket-Protocol") {
		for p := range strings.SplitSeq(line, ",") {
			offered = append(offered, strings.TrimSpace(p))
		}
	}
	for _, p := range s.opts.Subprotocols {
		if slices.Contains(offered, p) {
			return p
		}
	}
	return ""
}

// originAllowed reports whether the page that the request comes from may connect.
func (s *Server) originAllowed(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" || s.opts.AnyOrigin {
		return true
	}
	if len(r.Header["Origin"]) > 1 {
		return false
	}
	u, err := url.Parse(origin)
	if err != nil || u.Host == "" {
		return false // "null" too, which a sandboxed page or a file has
	}
	if strings.EqualFold(u.Host, r.Host) {
		return true
	}
	for _, pattern := range s.opts.Origins {
		target := u.Host
		if strings.Contains(pattern, "://") {
			target = u.Scheme + "://" + u.Host
		}
		if ok, _ := path.Match(strings.ToLower(pattern), strings.ToLower(target)); ok {
			return true
		}
	}
	return false
}

// peerOf is the peer's address, behind trusted proxies.
func (s *Server) peerOf(r *http.Request) netip.Addr {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	addr := at.Addr().Unmap()
	trusted := func(a netip.Addr) bool {
		return slices.ContainsFunc(s.opts.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	if !trusted(addr) {
		return addr
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops) {
		a, err := netip.ParseAddr(strings.TrimSpace(hop))
		if err != nil {
			break // what is in front of it is not to be believed either
		}
		if addr = a.Unmap(); !trusted(addr) {
			break
		}
	}
	return addr
}

// An exchange is what gobwas's upgrader takes for the connection: it keeps the answer.
type exchange struct {
	bytes.Buffer
	net.Conn // nil: nothing else is called
}

func (x *exchange) Header() http.Header              { return http.Header{} }
func (x *exchange) WriteHeader(int)                  {}
func (x *exchange) Write(p []byte) (int, error)      { return x.Buffer.Write(p) }
func (x *exchange) Read(p []byte) (int, error)       { return x.Buffer.Read(p) }
func (x *exchange) SetDeadline(time.Time) error      { return nil }
func (x *exchange) SetWriteDeadline(time.Time) error { return nil }
func (x *exchange) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return x, bufio.NewReadWriter(nil, bufio.NewWriterSize(&x.Buffer, 1024)), nil
}

// Upgrade is Server.Upgrade of a Server of its own, which it makes of opts. A handler that serves
// many connections makes one Server for all, by New or Listen.
func Upgrade(w http.ResponseWriter, r *http.Request, opts *Options) (*Conn, error) {
	s, err := New(opts)
	if err != nil {
		http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
		return nil, err
	}
	return s.Upgrade(w, r)
}

// Upgrade makes a WebSocket connection of the request of a net/http handler, with what w's Header
// has in its answer. Behind it the handler must not use w or r's body. If the request is refused,
// Upgrade has answered it and returns an error.
//
// On an http.Server that runs on [tcpio.Listener.NetListener] the connection stays on that
// listener's loops. With [Options].NewActor its events go there; else call Conn.Attach or
// Conn.Events, and the handler can return. On any other http.Server the socket moves to the loops
// of s, which Listen must have made without a TLSConfig, and events go where those of accepted
// connections go. TLS of crypto/tls under net/http cannot move: on a NetListener, set
// [tcpio.ListenerOptions].TLSConfig instead.
func (s *Server) Upgrade(w http.ResponseWriter, r *http.Request) (*Conn, error) {
	o, answer, no := s.handshake(r, w.Header(), s.opts.Check)
	if no != nil {
		no.header(w.Header())
		http.Error(w, no.text(), no.Status)
		return nil, no
	}
	nc, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
		return nil, err
	}
	if err := s.serves(nc); err != nil {
		_, _ = nc.Write((&HandshakeError{Status: http.StatusInternalServerError}).answer())
		nc.Close()
		return nil, err
	}
	o.rest, _ = rw.Reader.Peek(rw.Reader.Buffered())
	o.rest = bytes.Clone(o.rest)
	_ = nc.SetDeadline(time.Now().Add(s.opts.HandshakeTimeout)) // it fails where Write fails too
	if _, err = nc.Write(answer); err == nil {
		var c *Conn
		if c, err = s.take(nc, o); err == nil {
			return c, nil
		}
	}
	nc.Close()
	return nil, err
}

// serves says why the server cannot serve nc.
func (s *Server) serves(nc net.Conn) error {
	switch nc.(type) {
	case *tcpio.Conn:
		return nil
	case *net.TCPConn, *net.UnixConn:
		switch {
		case s.l == nil:
			return errors.New("websocket: the connection is a socket, and the Server has no listener")
		case s.tls:
			return errors.New("websocket: the connection is a socket, and the Server has a TLSConfig")
		}
		return nil
	}
	return fmt.Errorf("websocket: a %T is neither tcpio's nor a socket; see Server.Upgrade", nc)
}

// take makes a Conn of nc, whose handshake is done.
func (s *Server) take(nc net.Conn, o opened) (*Conn, error) {
	_ = nc.SetDeadline(time.Time{})
	tc, ok := nc.(*tcpio.Conn)
	if !ok {
		return s.adopt(nc, o)
	}
	c := &Conn{tc: tc, s: s, driven: s.opts.NewActor != nil}
	tc.SetData(c)
	c.open(o)
	if !c.driven {
		return c, nil
	}
	if err := tc.Attach((*driver)(c)); err != nil {
		return nil, err
	}
	return c, nil
}

// adopt moves nc to the server's loops.
func (s *Server) adopt(nc net.Conn, o opened) (*Conn, error) {
	s.naming.Lock() // its first events wait until it has its Conn
	defer s.naming.Unlock()
	tc, err := s.l.Adopt(nc)
	if err != nil {
		return nil, err
	}
	c := s.newConn(tc)
	c.open(o)
	c.mu.Lock()
	c.nudgeLocked()
	c.mu.Unlock()
	return c, nil
}

// A HandshakeError says why a handshake was refused.
type HandshakeError struct {
	Status int    // of HTTP
	Reason string // what was wrong with the request; empty for one that Check refused, and from Dial
}

func (e *HandshakeError) Error() string { return "websocket: handshake refused: " + e.text() }

func (e *HandshakeError) text() string {
	text := http.StatusText(e.Status)
	if text == "" {
		text = fmt.Sprint("status ", e.Status)
	}
	if e.Reason != "" {
		text += ": " + e.Reason
	}
	return text
}
