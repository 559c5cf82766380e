package websocket

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gobwas/httphead"
	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsflate"
)

// Dial connects to a ws URL and blocks until the handshake is done, ctx ends, or HandshakeTimeout
// is over. The connection is served on s's loops, under s's options: its Subprotocols and Compress
// are offered. header, which may be nil, goes into the request.
//
// Without [Options].NewActor its events go to Server.Events, Opened first; with it call Conn.Attach
// or Conn.Events. Serve must be running. wss is not supported, and without Actor neither is a
// server with TLSConfig. A server that refuses the handshake is a *[HandshakeError].
func (s *Server) Dial(ctx context.Context, rawURL string, header http.Header) (*Conn, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, err
	}
	if s.l == nil {
		return nil, errors.New("websocket: Dial: the server has no listener")
	}
	if u.Scheme != "ws" {
		return nil, errors.New("websocket: Dial: the URL's scheme is not ws: " + u.Scheme)
	}
	if s.opts.NewActor == nil && s.tls {
		return nil, errors.New("websocket: Dial: a server with TLSConfig and without Actor cannot")
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.HandshakeTimeout)
	defer cancel()
	addr := u.Host
	if u.Port() == "" {
		addr = net.JoinHostPort(u.Hostname(), "80")
	}
	var nc net.Conn
	if s.opts.NewActor != nil {
		nc, err = s.l.Dial(ctx, "tcp", addr)
	} else {
		nc, err = new(net.Dialer).DialContext(ctx, "tcp", addr)
	}
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Now()) })
	o, err := s.request(nc, u, header)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		nc.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, err
	}
	c, err := s.take(nc, o)
	if err != nil {
		nc.Close()
	}
	return c, err
}

// request asks the peer of nc for a WebSocket connection.
func (s *Server) request(nc net.Conn, u *url.URL, header http.Header) (o opened, err error) {
	d := ws.Dialer{Protocols: s.opts.Subprotocols, Header: ws.HandshakeHeaderHTTP(header)}
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
	o.proto, o.client = strings.Clone(hs.Protocol), true
	if at, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		o.peer = at.AddrPort().Addr().Unmap()
	}
	return o, nil
}
