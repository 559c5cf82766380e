package tcpio

import (
	"net"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Descriptors that move between this package and others, and splice(2).

func sysPipe() (pipe [2]int, err error) {
	err = unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK)
	if err == nil {
		_, _ = unix.FcntlInt(uintptr(pipe[0]), unix.F_SETPIPE_SZ, copyChunk) // without it there are 64 KiB
	}
	return pipe, err
}

func sysClosePipe(pipe [2]int) {
	_ = unix.Close(pipe[0])
	_ = unix.Close(pipe[1])
}

// sysReadPipe reads what a pipe holds.
func sysReadPipe(fd int, p []byte) (int, error) {
	for {
		n, err := unix.Read(fd, p)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// sysSplice moves up to size bytes from one descriptor to the other, of which one is a pipe.
func sysSplice(from, to, size int) (int, syscall.Errno) {
	for {
		n, err := unix.Splice(from, nil, to, nil, size, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if err != unix.EINTR {
			errno, _ := err.(syscall.Errno)
			return max(int(n), 0), errno
		}
	}
}

// sysBoundSplice sees to it that no splice on a socket blocks for long. splice has no MSG_DONTWAIT: it trusts O_NONBLOCK, which
// whoever shares the socket may have taken off.
func sysBoundSplice(fd int32) { _ = limitCalls(int(fd)) }

// sysSpliceOut is sysSplice to a socket. splice has no MSG_NOSIGNAL: the signal of a broken pipe is kept from the program, which
// may have asked for it (os/signal, SIGPIPE), by being blocked on this thread, where it is sent, and taken.
func sysSpliceOut(pipe int, fd int32, size int) (int, syscall.Errno) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	set, old := uint64(1)<<(unix.SIGPIPE-1), uint64(0)
	sigmask(unix.SIG_BLOCK, &set, &old)
	n, errno := sysSplice(pipe, int(fd), size)
	if errno == unix.EPIPE && old&set == 0 {
		var none unix.Timespec
		for {
			_, _, e := unix.RawSyscall6(unix.SYS_RT_SIGTIMEDWAIT, uintptr(unsafe.Pointer(&set)), 0,
				uintptr(unsafe.Pointer(&none)), unsafe.Sizeof(set), 0, 0)
			if e != unix.EINTR {
				break
			}
		}
	}
	sigmask(unix.SIG_SETMASK, &old, nil)
	return n, errno
}

// sigmask changes the signal mask of the thread, which the kernel takes as 64 bits on every architecture that Go has.
func sigmask(how int, set, old *uint64) {
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, uintptr(how), uintptr(unsafe.Pointer(set)),
		uintptr(unsafe.Pointer(old)), unsafe.Sizeof(*set), 0, 0)
}

// sysGiveAway makes a *net.TCPConn of a duplicate of fd.
func sysGiveAway(fd int32) (*net.TCPConn, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(uintptr(dup), "tcpio")
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
	_ = unlimitCalls(int(fd))
	return tc, nil
}

// sysTake moves the socket out of nc: a duplicate that this package owns, after which nc is closed.
func sysTake(nc net.Conn) (int32, sockaddr, error) {
	raw, err := nc.(syscall.Conn).SyscallConn()
	if err != nil {
		return -1, sockaddr{}, err
	}
	fd := -1
	ctlErr := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	if ctlErr != nil {
		err = ctlErr
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return -1, sockaddr{}, os.NewSyscallError("fcntl", err)
	}
	_ = limitCalls(fd)
	peer := peerOf(nc.RemoteAddr())
	if _, ok := nc.(*net.TCPConn); ok && !peer.isIP {
		peer.isIP, peer.is4 = true, true // reset before somebody asked: it has no peer any more, and is no unix socket for that
	}
	return int32(fd), peer, nil
}

// sysListenerFile makes a duplicate of fd. The shared description stays non-blocking, and so it does when somebody
// calls Fd: NewFile, unlike net.TCPListener's File, does not touch that.
func sysListenerFile(fd int) (*os.File, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(dup), "tcpio"), nil
}

// sysListenerCopy makes a *net.TCPListener of a duplicate of fd.
func sysListenerCopy(fd int) (*net.TCPListener, error) {
	f, err := sysListenerFile(fd)
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
