package embedded

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"

	"github.com/nats-io/nats.go"
)

// A Machine says which server this process runs of a cluster whose servers have fixed names and
// addresses. The struct is copied.
type Machine struct {
	// Name is this server's, among Peers. JetStream knows the server by it: it must be the same
	// whenever the server starts again, and no two servers may have it.
	Name string
	// Peers has the name and the "host:port" of every server, this one's too, and is the same on
	// all. With Store these are 3 or 5.
	Peers map[string]string
	// Listen is the "host:port" to listen on, if it is not that of Peers[Name].
	Listen string
	// Secret is the same on all servers, at least 32 bytes, from a random source. Who knows it can
	// become a server. Without TLS, which is possible on loopback alone, it is sent in the clear.
	Secret string
	// TLS is for the connections between the servers, both ends: with a certificate for server and
	// client, and the authority as RootCAs and ClientCAs. It is required when an address is not a
	// loopback address, and must not have InsecureSkipVerify without VerifyConnection.
	TLS *tls.Config
	// Store is the directory where JetStream keeps what it stores, a server's own; "" is no
	// JetStream. All servers have it or none.
	Store string
	// Logger gets the lines of the NATS server; nil is none.
	Logger *slog.Logger
	// Conn are further options of the connection, such as nats.Name.
	Conn []nats.Option
}

// minSecret is the least length of Machine.Secret, in bytes.
const minSecret = 32

// Start runs one server of a cluster whose servers are known by name. It blocks until the server
// runs, which takes some 50 ms, or ctx ends; it does not wait for the other servers, so that they
// can be started in any order. With Store, JetStream is ready some seconds after a majority of them
// runs. Errors of the configuration name the field.
func Start(ctx context.Context, m *Machine) (*Server, error) {
	if m == nil {
		return nil, errors.New("embedded: Machine is nil")
	}
	opts := *m
	listen, err := opts.check()
	if err != nil {
		return nil, err
	}
	so := serverOptions(opts.Name)
	so.Cluster.Name = "tcpio"
	so.Cluster.Host, so.Cluster.Port = listen.host, listen.port
	so.Cluster.Username, so.Cluster.Password = "tcpio", opts.Secret
	so.Cluster.Advertise = opts.Peers[opts.Name]
	if opts.TLS != nil {
		so.Cluster.TLSConfig = opts.TLS.Clone()
		so.Cluster.TLSTimeout = 5
	}
	for name, addr := range opts.Peers {
		if name != opts.Name {
			so.Routes = append(so.Routes, routeURL(addr, opts.Secret))
		}
	}
	if opts.Store != "" {
		so.JetStream, so.StoreDir = true, opts.Store
	}
	srv, err := startServer(ctx, so, opts.Logger)
	if err != nil {
		return nil, err
	}
	nc, err := connect(srv, so, opts.Conn)
	if err != nil {
		stopServer(srv)
		return nil, err
	}
	return &Server{nc: nc, stop: func() { stopServer(srv) }}, nil
}

type hostPort struct {
	host string
	port int
}

func (m *Machine) check() (listen hostPort, err error) {
	if _, ok := m.Peers[m.Name]; !ok || m.Name == "" {
		return listen, fmt.Errorf("embedded: Machine.Name: %q is not among Peers", m.Name)
	}
	if len(m.Secret) < minSecret {
		return listen, fmt.Errorf("embedded: Machine.Secret has %d bytes, and needs %d", len(m.Secret), minSecret)
	}
	if n := len(m.Peers); m.Store != "" && n != 3 && n != 5 {
		return listen, fmt.Errorf("embedded: Machine.Store needs 3 or 5 Peers, and there are %d", n)
	}
	if t := m.TLS; t != nil && t.InsecureSkipVerify && t.VerifyConnection == nil {
		return listen, errors.New("embedded: Machine.TLS has InsecureSkipVerify and no VerifyConnection")
	}
	for name, addr := range m.Peers {
		if _, err := m.address(addr); err != nil {
			return listen, fmt.Errorf("embedded: Machine.Peers[%q]: %w", name, err)
		}
	}
	if m.Listen == "" {
		return m.address(m.Peers[m.Name])
	}
	listen, err = m.address(m.Listen)
	if err != nil {
		return listen, fmt.Errorf("embedded: Machine.Listen: %w", err)
	}
	return listen, nil
}

// address reads a "host:port", and refuses one on other hosts without TLS.
func (m *Machine) address(addr string) (hostPort, error) {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return hostPort{}, err
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return hostPort{}, fmt.Errorf("%q has no port from 1 to 65535", addr)
	}
	if m.TLS == nil && host != "localhost" && !net.ParseIP(host).IsLoopback() {
		return hostPort{}, fmt.Errorf("%q is not a loopback address, and Machine.TLS is nil", addr)
	}
	return hostPort{host, int(port)}, nil
}
