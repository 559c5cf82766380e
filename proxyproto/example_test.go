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

// A proxy that tells the upstream who its clients are. The upstream believes it, since it is in
// Proxies there.
func ExampleSend() {
	listen := func(o tcpio.ListenerOptions, receive tcpio.ActorFunc) *tcpio.Listener {
		o.Addr = "127.0.0.1:0"
		o.NewActor = func(*tcpio.Conn) tcpio.Actor { return receive }
		l, err := tcpio.Listen(&o)
		if err != nil {
			log.Fatal(err)
		}
		return l
	}
	upstream := listen(tcpio.ListenerOptions{
		Preface: proxyproto.Accept(proxyproto.Options{}),
		Proxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
	}, func(ev tcpio.Event) error {
		if o, ok := ev.(tcpio.Opened); ok {
			fmt.Fprint(o.Conn, o.Conn.RemoteAddr())
			return io.EOF // closes in order
		}
		return nil
	})
	proxy := listen(tcpio.ListenerOptions{}, func(ev tcpio.Event) error {
		switch ev := ev.(type) {
		case tcpio.Opened:
			_, err := ev.Conn.Listener().DialAsync(tcpio.DialRequest{Address: upstream.Addr().String(), To: ev.Conn})
			return err
		case tcpio.Dialed:
			if ev.Err != nil {
				return ev.Err
			}
			if err := proxyproto.Send(ev.Conn, ev.To, proxyproto.Checksum()); err != nil {
				ev.Conn.Abort()
				return err
			}
			if _, err := ev.To.Relay(ev.Conn, nil); err != nil {
				ev.Conn.Abort() // the client has gone meanwhile
			}
		}
		return nil
	})
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error)
	for _, l := range []*tcpio.Listener{upstream, proxy} {
		go func() { served <- l.Serve(ctx) }()
	}

	client, err := net.Dial("tcp", proxy.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	answer, _ := io.ReadAll(client)
	fmt.Println("the upstream knows the client:", string(answer) == client.LocalAddr().String())
	client.Close()
	stop()
	fmt.Println("end:", <-served, <-served)
	// Output:
	// the upstream knows the client: true
	// end: <nil> <nil>
}
