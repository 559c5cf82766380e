//go:build !linux

package tcpio

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// Elsewhere the package compiles, so that programs for several systems can import it, and Listen fails.

const supported = false

const (
	pollIn = 1 << iota
	pollOut
	pollPri
	pollErr
	pollHup
	pollRdHup
	pollEdge = pollIn
	pollConn = pollIn | pollOut | pollPri | pollRdHup
)

type readyEvent struct {
	b uint32
	t token
}

func (e *readyEvent) bits() uint32 { return e.b }
func (e *readyEvent) token() token { return e.t }

type sockaddr struct {
	ip   [16]byte
	zone uint32
	port uint16
	is4  bool
	isIP bool
}

type iovec struct{ n int }

func (*iovec) add([]byte) bool { return false }

func newPoller() (poller, error)                                 { return nil, errors.ErrUnsupported }
func sysRecv(int32, []byte) (int, syscall.Errno)                 { return 0, syscall.ENOTSUP }
func sysSend(int32, []byte) (int, syscall.Errno)                 { return 0, syscall.ENOTSUP }
func sysSendv(int32, *iovec) (int, syscall.Errno)                { return 0, syscall.ENOTSUP }
func sysUnread(int32) int                                        { return 0 }
func sysHungUp(int32) bool                                       { return false }
func sysShutdownWrite(int32) error                               { return errors.ErrUnsupported }
func sysClose(int32)                                             {}
func sysReset(int32)                                             {}
func sysSockError(int32) error                                   { return nil }
func sysSetNoDelay(int32, bool) error                            { return errors.ErrUnsupported }
func sysAccept(int) (int, sockaddr, syscall.Errno)               { return -1, sockaddr{}, syscall.ENOTSUP }
func sysLocalAddr(int32) net.Addr                                { return nil }
func retryable(syscall.Errno) bool                               { return false }
func exhausted(syscall.Errno) bool                               { return false }
func takeListener(net.Listener) (int, error)                     { return -1, errors.ErrUnsupported }
func tuneListener(int, net.KeepAliveConfig, time.Duration) error { return errors.ErrUnsupported }

func (c *Conn) sendFrom(io.Reader) (int64, bool, error) { return 0, false, nil }
func (c *Conn) recvTo(io.Writer) (int64, bool, error)   { return 0, false, nil }

func sysGiveAway(int32) (*net.TCPConn, error)       { return nil, errors.ErrUnsupported }
func sysTake(net.Conn) (int32, sockaddr, error)     { return -1, sockaddr{}, errors.ErrUnsupported }
func sysListenerFile(int) (*os.File, error)         { return nil, errors.ErrUnsupported }
func sysListenerCopy(int) (*net.TCPListener, error) { return nil, errors.ErrUnsupported }
func sysPeek(int32) (ready, end bool)               { return false, false }
