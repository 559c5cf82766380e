package sys

import (
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Socket options. An error names the system call, and the option where several are set.

// callLimit bounds the calls that have no MSG_DONTWAIT, should O_NONBLOCK be off. The kernel rounds
// it up to one tick of its clock, 1 to 10 ms.
const callLimit = time.Millisecond

// LimitCalls sets SO_RCVTIMEO and SO_SNDTIMEO so that no call on the socket blocks for longer than
// a tick of the kernel's clock. A call with MSG_DONTWAIT, or while O_NONBLOCK is on, does not look
// at them. Accepted TCP sockets inherit them from the listening socket.
func LimitCalls(fd int32) error { return setCallLimits(fd, callLimit) }

// setCallLimits with 0 lets calls block again, for a socket that another owner may want to block
// in.
func setCallLimits(fd int32, d time.Duration) error {
	tv := unix.NsecToTimeval(int64(d))
	err := unix.SetsockoptTimeval(int(fd), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	if err == nil {
		err = unix.SetsockoptTimeval(int(fd), unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
	}
	return os.NewSyscallError("setsockopt", err)
}

// SetNoDelay sets TCP_NODELAY.
func SetNoDelay(fd int32, on bool) error {
	v := 0
	if on {
		v = 1
	}
	return os.NewSyscallError("setsockopt",
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, v))
}

// Multipath reports whether a TCP socket is one of multipath TCP, where a short read proves
// nothing.
func Multipath(fd int32) bool {
	protocol, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PROTOCOL)
	return err == nil && protocol != unix.IPPROTO_TCP
}

// TuneListener sets TCP_NODELAY, the keep-alive options and TCP_USER_TIMEOUT on the listening
// socket. Every accepted socket inherits them (Linux copies them in tcp_create_openreq_child), so
// that no accepted connection costs a setsockopt.
func TuneListener(fd int32, ka net.KeepAliveConfig, userTimeout time.Duration) error {
	return tune(fd, ka, userTimeout, false)
}

// TuneDialed is TuneListener for a socket that is about to connect, after its user's own settings:
// keepAlive false leaves the keep-alive options as they are, and a TCP_USER_TIMEOUT that is set
// already stays. A multipath socket goes without the options that it lacks.
func TuneDialed(fd int32, keepAlive, multipath bool, ka net.KeepAliveConfig,
	userTimeout time.Duration) error {
	if !keepAlive {
		on, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE)
		if err != nil {
			return os.NewSyscallError("getsockopt", err)
		}
		ka = net.KeepAliveConfig{Enable: on != 0, Idle: -1, Interval: -1, Count: -1} // as it is
	}
	if userTimeout > 0 {
		was, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
		if err == nil && was != 0 {
			userTimeout = 0
		}
	}
	return tune(fd, ka, userTimeout, multipath)
}

// tune sets the options of which the value is not negative. With mayLack it leaves out those that
// the socket does not have.
func tune(fd int32, ka net.KeepAliveConfig, userTimeout time.Duration, mayLack bool) error {
	user, alive, idle, interval, count := -1, 0, -1, -1, -1
	if userTimeout > 0 {
		user = int((userTimeout + time.Millisecond - 1) / time.Millisecond)
	}
	if ka.Enable {
		alive, idle, interval, count = 1, seconds(ka.Idle), seconds(ka.Interval), ka.Count
		if count == 0 {
			count = 9
		}
	}
	for _, o := range [...]struct {
		name              string
		level, opt, value int
	}{
		{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{"TCP_USER_TIMEOUT", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, user},
		{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, alive},
		{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, idle},
		{"TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, interval},
		{"TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, count},
	} {
		if o.value < 0 {
			continue
		}
		switch errno := setOption(fd, o.level, o.opt, o.value); {
		case errno == 0:
		case mayLack && (errno == unix.EOPNOTSUPP || errno == unix.ENOPROTOOPT):
		default:
			return os.NewSyscallError("setsockopt "+o.name, errno)
		}
	}
	return nil
}

// setOption sets an option of an int. It is a raw call: a dialed connection makes some of them, and
// none takes long.
func setOption(fd int32, level, option, value int) syscall.Errno {
	v := int32(value)
	_, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&v)), unsafe.Sizeof(v), 0)
	return errno
}

// seconds rounds a keep-alive time up to whole seconds, as the package net does. 0 is the default,
// 15 s. A negative time stays negative.
func seconds(d time.Duration) int {
	switch {
	case d < 0:
		return -1
	case d == 0:
		return 15
	}
	return int((d + time.Second - 1) / time.Second)
}
