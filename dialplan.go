package tcpio

import (
	"context"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/rabbit-backend/tcpio/internal/sys"
)

// A dialPlan is what a dial connects, by which addresses, and how. Only setAddrs changes it later.
type dialPlan struct {
	network  string
	host     string           // of the address
	service  string           // likewise, its port
	given    *net.Dialer      // the request's, which is its user's again when the dial has begun
	dialer   *net.Dialer      // a copy, or the listener's plainDialer, but for the times
	opts     *ListenerOptions // the listener's
	deadline int64            // on the clock of now; 0: none
	addrs    [2][]net.Addr    // those of the first one's family, and the others; none: the name is to be looked up

	// For what may block, on a goroutine of Listener.dialWorkers; nil where there is none of it.
	ctx    context.Context
	cancel context.CancelFunc
}

// setAddress checks the network, the address and the local address. Literal addresses are known
// then.
func (d *dialPlan) setAddress(address string) error {
	local := d.dialer.LocalAddr
	mismatch := func() error {
		return &net.AddrError{Err: "mismatched local address type", Addr: local.String()}
	}
	switch d.network {
	case "unix":
		if u, ok := local.(*net.UnixAddr); local != nil && !ok {
			return mismatch()
		} else if local != nil && (u == nil || u.Name == "") {
			d.dialer.LocalAddr = nil // of a copy
		}
		d.addrs[0] = []net.Addr{&net.UnixAddr{Name: address, Net: "unix"}}
		return nil
	case "tcp", "tcp4", "tcp6":
	default:
		return net.UnknownNetworkError(d.network)
	}
	if a, ok := local.(*net.TCPAddr); local != nil && !ok {
		return mismatch()
	} else if local != nil && a == nil {
		d.dialer.LocalAddr = nil // of a copy
	}
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	d.host, d.service = host, service
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil && service != "" && service[0] >= '0' && service[0] <= '9' {
		return &net.AddrError{Err: "invalid port", Addr: address}
	}
	var ip netip.Addr
	switch {
	case err != nil && service != "": // the name of a port
		return nil
	case host == "" && d.network == "tcp6":
		ip = netip.IPv6Loopback()
	case host == "":
		ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	default:
		if ip, err = netip.ParseAddr(host); err != nil {
			return nil
		}
	}
	return d.setAddrs([]netip.Addr{ip}, int(port))
}

// setAddrs shares out the addresses that fit the network and the local address: those of the first
// one's family, and the others, which happy eyeballs try beside them (RFC 8305).
func (d *dialPlan) setAddrs(ips []netip.Addr, port int) error {
	var locally netip.Addr
	if a, ok := d.dialer.LocalAddr.(*net.TCPAddr); ok {
		locally, _ = netip.AddrFromSlice(a.IP)
		locally = locally.Unmap()
	}
	first := ""
	for _, ip := range ips {
		network := "tcp6"
		if ip = ip.Unmap(); ip.Is4() {
			network = "tcp4"
		}
		if d.network != "tcp" && d.network != network ||
			locally.IsValid() && !locally.IsUnspecified() && locally.Is4() != ip.Is4() {
			continue
		}
		if ip.IsUnspecified() { // this host, as net.Dial has it
			ip = netip.IPv6Loopback()
			if network == "tcp4" {
				ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
			}
		}
		if first == "" {
			first = network
		}
		i := 0
		if network != first && d.network == "tcp" && d.dialer.FallbackDelay >= 0 {
			i = 1
		}
		d.addrs[i] = append(d.addrs[i], net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, uint16(port))))
	}
	if first == "" {
		return &net.AddrError{Err: "no suitable address found", Addr: d.host}
	}
	return nil
}

// begin begins the time limit, and makes a context for what may block.
func (d *dialPlan) begin(ctx context.Context) {
	limit := func(left time.Duration) {
		at := now() + int64(left)
		if left > 0 && at < 0 {
			return // in centuries
		}
		if at = max(at, 1); d.deadline == 0 || at < d.deadline {
			d.deadline = at
		}
	}
	if given := d.given; given != nil {
		d.given = nil
		if given.Timeout > 0 {
			limit(given.Timeout)
		}
		if !given.Deadline.IsZero() {
			limit(time.Until(given.Deadline))
		}
	}
	if at, ok := ctx.Deadline(); ok {
		limit(time.Until(at))
	}
	if len(d.addrs[0]) == 0 || d.hasControl() {
		d.ctx, d.cancel = context.WithCancel(ctx)
	}
}

func (d *dialPlan) hasControl() bool {
	return d.dialer.Control != nil || d.dialer.ControlContext != nil
}

// open makes a socket and begins to connect it to a. On an error, and when Control panics, no
// descriptor is left.
func (d *dialPlan) open(a net.Addr) (fd int32, err error) {
	network := "unix"
	if tcp, ok := a.(*net.TCPAddr); ok {
		network = "tcp6"
		if tcp.IP.To4() != nil {
			network = "tcp4"
		}
	}
	multipath := d.dialer.MultipathTCP()
	if fd, err = sys.Socket(network, multipath); err != nil {
		return -1, err
	}
	connecting := false
	defer func() {
		if !connecting {
			sys.CloseFD(fd)
		}
	}()
	raw := sys.RawSocket(fd)
	if control := d.dialer.ControlContext; control != nil {
		err = control(d.ctx, network, a.String(), raw)
	} else if control := d.dialer.Control; control != nil {
		err = control(network, a.String(), raw)
	}
	if err == nil && network != "unix" {
		err = d.tune(fd, multipath)
	}
	if err == nil && d.dialer.LocalAddr != nil {
		err = sys.Bind(fd, d.dialer.LocalAddr)
	}
	if err == nil && d.hasControl() {
		err = sys.LimitCalls(fd) // it may have cleared O_NONBLOCK
	}
	if err == nil {
		err = sys.Connect(fd, a)
	}
	connecting = err == nil
	return fd, err
}

// tune sets the listener's options behind Control, and the Dialer's keep-alive in place of the
// listener's.
func (d *dialPlan) tune(fd int32, multipath bool) error {
	own := d.dialer.KeepAliveConfig
	if !own.Enable && d.dialer.KeepAlive > 0 {
		own = net.KeepAliveConfig{Enable: true, Idle: d.dialer.KeepAlive}
	}
	ours := !own.Enable && d.dialer.KeepAlive == 0
	if err := sys.TuneDialed(fd, ours, multipath, d.opts.KeepAlive, d.opts.TCPUserTimeout); err != nil {
		return err
	}
	if own.Enable {
		return sys.SetKeepAlive(fd, own)
	}
	return nil
}

// resolve looks up the addresses of the host, and the port if that is a name.
func (d *dialPlan) resolve() (ips []netip.Addr, port int, err error) {
	r := d.dialer.Resolver
	if r == nil {
		r = net.DefaultResolver
	} else if dial := r.Dial; dial != nil { // the resolver calls it on goroutines of its own
		r = &net.Resolver{PreferGo: r.PreferGo, StrictErrors: r.StrictErrors,
			Dial: func(ctx context.Context, network, address string) (nc net.Conn, err error) {
				if p := elsewhere("Resolver.Dial", func() { nc, err = dial(ctx, network, address) }); p != nil {
					return nil, p
				}
				return nc, err
			}}
	}
	if d.service != "" {
		if port, err = r.LookupPort(d.ctx, d.network, d.service); err != nil {
			return nil, 0, err
		}
	}
	if ip, err := netip.ParseAddr(d.host); err == nil {
		return []netip.Addr{ip}, port, nil
	}
	if d.host == "" {
		return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}, port, nil
	}
	network := "ip" + d.network[len("tcp"):]
	ips, err = r.LookupNetIP(d.ctx, network, d.host)
	return ips, port, err
}

// mayBeSelf reports whether the user has chosen the local port. Then the port may be its own peer.
func (d *dialPlan) mayBeSelf() bool {
	a, ok := d.dialer.LocalAddr.(*net.TCPAddr)
	return ok && a.Port != 0
}

// share is until when one of n addresses may take: an equal part of the time that is left, but two
// seconds at least, as net.Dialer has it.
func (d *dialPlan) share(t int64, n int) int64 {
	if d.deadline == 0 {
		return 0
	}
	part := (d.deadline - t) / int64(n)
	return min(d.deadline, t+max(part, int64(2*time.Second)))
}

// errSelf is the error of a connection with itself; see lookConnected.
var errSelf = &os.SyscallError{Syscall: "connect", Err: syscall.ECONNREFUSED}

// lookConnected reports whether the attempt is over, and why it failed. What epoll has said tells:
// a socket that connects is neither writable nor hung up (connect(2)), and an edge comes when that
// changes. The kernel is asked of one that has failed too; and, with ask, of one of which epoll has
// said nothing.
//
// A port of the dynamic range that nobody listens on can be given to the very socket that connects
// to it. Such a connection with itself is not wanted, unless mayBeSelf.
func (c *Conn) lookConnected(mayBeSelf, ask bool) (done bool, err error) {
	c.mu.Lock()
	defer c.unlock()
	bits := uint32(c.ext.edges)
	switch {
	case c.ended():
		return true, net.ErrClosed
	case bits == 0 && !ask:
		return false, nil
	case bits&pollOut == 0 || bits&(pollErr|pollHup) != 0:
		if done, err = sys.Connected(c.fd); err != nil || !done {
			return err != nil, err
		}
	}
	if !mayBeSelf && c.peer.IsIP && c.peer.Same(sys.Local(c.fd)) {
		return true, errSelf
	}
	return true, nil
}
