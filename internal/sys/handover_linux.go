package sys

import (
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Descriptors that move between this process's owners of them. Each function makes a duplicate,
// CLOEXEC and non-blocking, and says who owns it. Raw descriptors come from SyscallConn and not
// from File, which would put the shared description into blocking mode.

// TakeListener moves the socket out of ln: it closes ln and returns a duplicate that the caller
// owns. After an error ln is open. A unix socket's path stays.
func TakeListener(ln net.Listener) (int32, error) {
	fd, err := take(ln.(syscall.Conn))
	if err != nil {
		return -1, err
	}
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	ln.Close()
	return fd, nil
}

// Take returns a duplicate of nc's socket, which the caller owns, and its peer. The caller closes
// nc, or undoes Take by Disown.
func Take(nc net.Conn) (int32, Addr, error) {
	fd, err := take(nc.(syscall.Conn))
	if err != nil {
		return -1, Addr{}, err
	}
	peer := AddrOf(nc.RemoteAddr())
	if _, ok := nc.(*net.TCPConn); ok && !peer.IsIP {
		peer = AddrOf(&net.TCPAddr{IP: net.IPv4zero}) // it was reset, and has no peer any more
	}
	return fd, peer, nil
}

// Disown leaves to nc a socket of which Take has made a duplicate, as it was before.
func Disown(nc net.Conn) {
	raw, err := nc.(syscall.Conn).SyscallConn()
	if err != nil {
		return // closed meanwhile
	}
	_ = raw.Control(func(fd uintptr) { _ = setCallLimits(int32(fd), 0) })
}

// take duplicates the descriptor of c for calls that must not block.
func take(c syscall.Conn) (fd int32, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd = -1
	if ctlErr := raw.Control(func(old uintptr) { fd, err = dup(int32(old)) }); ctlErr != nil {
		return -1, ctlErr
	}
	if err != nil {
		return -1, err
	}
	if err = os.NewSyscallError("fcntl", unix.SetNonblock(int(fd), true)); err == nil {
		err = LimitCalls(fd)
	}
	if err != nil {
		CloseFD(fd)
		return -1, err
	}
	return fd, nil
}

func dup(fd int32) (int32, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	return int32(n), os.NewSyscallError("fcntl", err)
}

// DupFile makes a file of a duplicate of fd. The shared description stays non-blocking, also when
// Fd is called: NewFile, unlike File of net.TCPListener, does not touch that.
func DupFile(fd int32) (*os.File, error) {
	n, err := dup(fd)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(n), "tcpio"), nil
}

// DupListener makes a *net.TCPListener of a duplicate of fd.
func DupListener(fd int32) (*net.TCPListener, error) {
	f, err := DupFile(fd)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	tl, ok := ln.(*net.TCPListener)
	if !ok {
		ln.Close()
		return nil, unix.EINVAL
	}
	return tl, nil
}

// GiveAway makes a *net.TCPConn of a duplicate of fd. Blocking calls may block in it again.
func GiveAway(fd int32) (*net.TCPConn, error) {
	f, err := DupFile(fd)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	nc, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	tc, ok := nc.(*net.TCPConn)
	if !ok {
		nc.Close()
		return nil, unix.EINVAL
	}
	_ = setCallLimits(fd, 0)
	return tc, nil
}
