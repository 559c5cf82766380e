//go:build linux

package tls_test

import (
	"bytes"
	"crypto/tls"
	"io"
	"net/http"
	"testing"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// httpTLS serves TLS over a NetListener, by the server's own ServeTLS or by the listener's
// TLSConfig, and asks it once.
func httpTLS(t *testing.T, opts tcpio.ListenerOptions, serveTLS bool) (r *http.Request) {
	l := harness.Listen(t, opts)
	ln := l.NetListener()
	served := harness.Go(t.Context(), l)
	requests := make(chan *http.Request, 1)
	srv := &http.Server{TLSConfig: testnet.ServerTLS(), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests <- r
		body, _ := io.ReadAll(r.Body) // HTTP/1.1 is not full duplex
		_, _ = w.Write(body)
	})}
	srv.TLSConfig.NextProtos = nil // ServeTLS says what it speaks
	stopped := make(chan error, 1)
	go func() {
		if serveTLS {
			stopped <- srv.ServeTLS(ln, "", "")
		} else {
			stopped <- srv.Serve(ln)
		}
	}()
	transport := &http.Transport{TLSClientConfig: testnet.ClientTLS(), ForceAttemptHTTP2: true}
	client := &http.Client{Transport: transport, Timeout: testnet.Limit}
	body := testnet.Pattern(200000)
	resp, err := client.Post("https://"+l.Addr().String()+"/", "", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(got, body) {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
	resp.Body.Close()
	transport.CloseIdleConnections()
	srv.Close()
	if err := testnet.Await(t, "the end of the http.Server", stopped); err != http.ErrServerClosed {
		t.Error(err)
	}
	l.Close()
	if err := testnet.Await(t, "the end of Serve", served); err != nil {
		t.Error(err)
	}
	return testnet.Await(t, "the request", requests)
}

// http.Server.ServeTLS on a plain NetListener has all that it has on the package net's: the state
// of TLS, and HTTP/2.
func TestNetListenerServeTLSHasTheStateAndHTTP2(t *testing.T) {
	r := httpTLS(t, tcpio.ListenerOptions{}, true)
	if r.TLS == nil || r.TLS.ServerName != "localhost" || r.TLS.Version != tls.VersionTLS13 {
		t.Errorf("the request's TLS is %v", r.TLS)
	}
	if r.ProtoMajor != 2 {
		t.Errorf("the request came by %s", r.Proto)
	}
}

// With TLSConfig the listener does TLS by itself: net/http, which asks for a *tls.Conn, sees plain
// HTTP/1.1.
func TestNetListenerTLSConfigServesHTTPWithoutTheState(t *testing.T) {
	r := httpTLS(t, tcpio.ListenerOptions{TLSConfig: func() *tls.Config {
		c := testnet.ServerTLS()
		c.NextProtos = []string{"http/1.1"}
		return c
	}()}, false)
	if r.TLS != nil || r.ProtoMajor != 1 {
		t.Errorf("TLS is %v, the protocol %s", r.TLS, r.Proto)
	}
}
