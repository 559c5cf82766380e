//go:build linux

package tcpio

import (
	"crypto/tls"
	"net"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// asking is a server's config that says whose handshake begins, and waits until it may go on.
func asking(began chan<- string, goOn <-chan struct{}) *tls.Config {
	cert := testnet.ServerTLS().Certificates[0]
	return &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		began <- hello.ServerName
		<-goOn
		return &cert, nil
	}}
}

// Of the ClientHellos that wait, the newest is served first.
func TestTLSNewestClientHelloIsServedFirst(t *testing.T) {
	began, goOn := make(chan string, 10), make(chan struct{})
	r := listen(t, ListenerOptions{MaxHandshakes: 1, HandshakeTimeout: time.Hour,
		TLSConfig: asking(began, goOn), Actor: echoActor}).serve()
	names := []string{"first", "second", "third", "fourth"}
	for i, name := range names {
		config := testnet.ClientTLS()
		config.ServerName, config.InsecureSkipVerify = name, true
		c := tls.Client(r.dial(), config)
		done := make(chan struct{})
		go func() { defer close(done); _ = c.Handshake() }()
		t.Cleanup(func() { c.NetConn().Close(); <-done })
		if i == 0 {
			if got := testnet.Await(t, "the first handshake", began); got != name {
				t.Fatalf("%q began", got)
			}
		} else {
			testnet.WaitFor(t, "the place in the queue", func() bool { return r.handshakes.Waiting() == i })
		}
	}
	close(goOn)
	for _, want := range []string{"fourth", "third", "second"} {
		if got := testnet.Await(t, "a handshake", began); got != want {
			t.Errorf("%q began, want %q", got, want)
		}
	}
}

// A connection that closes leaves the queue of handshakes at once, however long the one in front takes.
func TestTLSClosedConnectionsLeaveTheQueueOfHandshakes(t *testing.T) {
	began, goOn := make(chan string, 10), make(chan struct{})
	r := listen(t, ListenerOptions{MaxHandshakes: 1, HandshakeTimeout: time.Hour,
		TLSConfig: asking(began, goOn), Actor: echoActor}).serve()
	defer close(goOn)
	testnet.Send(t, r.dial(), testnet.ClientHello())
	testnet.Await(t, "the first handshake", began)
	var waiting []net.Conn
	for range 100 {
		c := r.dial()
		testnet.Send(t, c, testnet.ClientHello())
		waiting = append(waiting, c)
	}
	testnet.WaitFor(t, "the queue", func() bool { return r.handshakes.Waiting() == 100 })
	for i, c := range waiting {
		switch i % 2 {
		case 0:
			c.Close()
		case 1:
			testnet.RST(t, c)
		}
	}
	testnet.WaitFor(t, "the queue to be empty", func() bool { return r.handshakes.Waiting() == 0 && r.Len() == 1 })
}
