package websocket

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gobwas/httphead"
	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsflate"

	"github.com/rabbit-backend/tcpio"
)

// Dial connects to a ws or wss URL and blocks until the handshake is done, ctx ends, or
// HandshakeTimeout is over. The connection is served on s's loops, under s's options: its
// Subprotocols and Compress are offered, and its ClientTLS holds for wss, with the URL's host as
// ServerName if it has none. header, which may be nil, goes into the request; its Host takes the
// place of the URL's, and what belongs to the handshake is an error.
//
// Without [Options].NewActor its events go to Server.Events, Opened first; with it call Conn.Attach
// or Conn.Events on what Dial returns. Before Serve runs Dial waits for it. An actor may call it;
// the consumer of Events should not, since everybody else would wait.
//
// A server that refuses the handshake is a *[HandshakeError]. Other errors are those of
// [tcpio.Listener.DialTLS], such as a certificate that is not trusted, and ctx's own.
func (s *Server) Dial(ctx context.Context, rawURL string, header http.Header) (*Conn, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, err
	}
	if s.l == nil {
		return nil, errors.New("websocket: Dial: the server has no listener")
	}
	if u.User != nil { // RFC 6455, 3
		return nil, errors.New("websocket: Dial: the URL has a user; use the header Authorization")
	}
	if err := checkHeader(header); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.HandshakeTimeout)
	defer cancel()
	tc, err := s.connect(ctx, u)
	if err != nil {
		return nil, dialError(ctx, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = tc.SetDeadline(time.Now()) })
	o, err := s.request(tc, u, header)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		tc.Close()
		return nil, dialError(ctx, err)
	}
	_ = tc.SetDeadline(time.Time{})
	c := s.connOf(tc)
	if !c.open(o) {
		return nil, c.errEnded("dial")
	}
	c.handOver()
	return c, nil
}

// checkHeader refuses what would be in the request twice.
func checkHeader(header http.Header) error {
	for name, values := range header {
		switch canonical := http.CanonicalHeaderKey(name); canonical {
		case "Upgrade", "Connection", "Sec-Websocket-Key", "Sec-Websocket-Version",
			"Sec-Websocket-Protocol", "Sec-Websocket-Extensions", "Content-Length", "Transfer-Encoding":
			return fmt.Errorf("websocket: Dial: the header has %s, which is the handshake's own", canonical)
		case "Host":
			if len(values) > 1 {
				return errors.New("websocket: Dial: the header has Host twice")
			}
		}
		if strings.ContainsFunc(name, notToken) {
			return fmt.Errorf("websocket: Dial: bad name of a header field: %q", name)
		}
	}
	return nil
}

// dialError is ctx's own error once that has ended.
func dialError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// connect makes the connection under u's.
func (s *Server) connect(ctx context.Context, u *url.URL) (*tcpio.Conn, error) {
	port := map[string]string{"ws": "80", "wss": "443"}[u.Scheme]
	if port == "" {
		return nil, fmt.Errorf("websocket: Dial: the URL's scheme is neither ws nor wss: %q", u.Scheme)
	}
	if u.Port() != "" {
		port = u.Port()
	}
	addr := net.JoinHostPort(u.Hostname(), port)
	if u.Scheme == "ws" {
		return s.l.Dial(ctx, "tcp", addr)
	}
	config := new(tls.Config)
	if s.opts.ClientTLS != nil {
		config = s.opts.ClientTLS.Clone()
	}
	config.NextProtos = []string{"http/1.1"} // the only one that this handshake is for
	if config.ServerName == "" {
		config.ServerName = u.Hostname()
	}
	return s.l.DialTLS(ctx, nil, "tcp", addr, config)
}

// request asks the peer of nc for a WebSocket connection.
func (s *Server) request(nc net.Conn, u *url.URL, header http.Header) (o opened, err error) {
	d := ws.Dialer{Protocols: s.opts.Subprotocols, Host: header.Get("Host")}
	if header = header.Clone(); header != nil {
		header.Del("Host")
		d.Header = ws.HandshakeHeaderHTTP(header)
	}
	if s.opts.Compress {
		d.Extensions = []httphead.Option{wsflate.DefaultParameters.Option()}
	}
	br, hs, err := d.Upgrade(nc, u)
	if err != nil {
		if status, ok := errors.AsType[ws.StatusError](err); ok {
			err = &HandshakeError{Status: int(status)}
		}
		return o, err
	}
	if br != nil {
		o.rest, _ = br.Peek(br.Buffered())
		o.rest = bytes.Clone(o.rest)
		ws.PutReader(br)
	}
	for _, ext := range hs.Extensions {
		var p wsflate.Parameters
		if err := p.Parse(ext); err != nil || !p.ServerNoContextTakeover {
			return o, errors.New("websocket: Dial: the peer wants to keep its compression context")
		}
		o.packs = true
	}
	o.proto = strings.Clone(hs.Protocol)
	if at, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		o.peer = at.AddrPort().Addr().Unmap()
	}
	return o, nil
}
