// Package proxyproto reads and writes the PROXY protocol, by which a proxy tells a server the
// address of its client: versions 1 and 2, on the parser of github.com/pires/go-proxyproto.
//
//	l, err := tcpio.Listen(&tcpio.ListenerOptions{
//		Addr:    ":7000",
//		Preface: proxyproto.Accept(proxyproto.Options{}),
//		Proxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
//	})
//
// A connection then opens behind its header, and before TLS. Its RemoteAddr is the client's, which
// MaxConnsPerIP counts; [HeaderOf] returns the header with its TLVs. The header may come in pieces
// cut at any byte. tcpio's PrefaceTimeout bounds the time that it takes, and a connection that
// waits for it has no goroutine and no buffer.
//
// A header is believed only if it comes from an address in Proxies, or by a unix socket: anybody
// could name any address in it. [Others] says what happens to connections from elsewhere.
//
// To HAProxy this server is "server s1 10.0.0.5:7000 send-proxy-v2", to nginx's stream module
// "proxy_protocol on;" (version 1). Where nginx has clients by IPv6 and reaches the server by IPv4,
// it mixes both in one line: set V1AcceptIPv4InTCP6 of go-proxyproto to take that.
//
// [Send] writes a header to an upstream.
package proxyproto
