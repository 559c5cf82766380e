//go:build linux

package proxyproto_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/proxyproto"
)

// A server behind HAProxy ("server s1 127.0.0.1:7000 send-proxy-v2") that greets its clients by
// their address.
func Example() {
	l, err := tcpio.Listen(&tcpio.ListenerOptions{
		Addr:    "127.0.0.1:0",
		Preface: proxyproto.Accept(proxyproto.Options{}),
		Proxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
		NewActor: func(*tcpio.Conn) tcpio.Actor {
			return tcpio.ActorFunc(func(ev tcpio.Event) error {
				if o, ok := ev.(tcpio.Opened); ok {
					fmt.Fprintf(o.Conn, "hello %v\n", o.Conn.RemoteAddr())
					tlvs, _ := proxyproto.HeaderOf(o.Conn).TLVs()
					fmt.Fprintf(o.Conn, "you came for %s\n", tlvs[0].Value)
					return o.Conn.Close()
				}
				return nil
			})
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error)
	go func() { served <- l.Serve(ctx) }()

	proxy, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	client := net.TCPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.7:49152"))
	service := net.TCPAddrFromAddrPort(netip.MustParseAddrPort("198.51.100.1:443"))
	name := proxyproto.TLV{Type: 2, Value: []byte("example.org")} // PP2_TYPE_AUTHORITY
	header, err := proxyproto.AppendV2(nil, client, service, name)
	if err != nil {
		log.Fatal(err)
	}
	proxy.Write(header)
	answer, _ := io.ReadAll(proxy)
	fmt.Print(string(answer))
	proxy.Close()
	stop()
	fmt.Println("end:", <-served)
	// Output:
	// hello 192.0.2.7:49152
	// you came for example.org
	// end: <nil>
}
