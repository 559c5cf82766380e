//go:build !linux

package tcpio

import (
	"errors"
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

const iovMax = 64

type fileID struct{}

type iovec struct{ n int }

func (*iovec) add([]byte) bool { return false }

func newPoller() (poller, error)                                 { return nil, errors.ErrUnsupported }
func sysRecv(int32, []byte) (int, syscall.Errno)                 { return 0, syscall.ENOTSUP }
func sysSend(int32, []byte) (int, syscall.Errno)                 { return 0, syscall.ENOTSUP }
func sysSendv(int32, *iovec) (int, syscall.Errno)                { return 0, syscall.ENOTSUP }
func sysUnread(int32) int                                        { return 0 }
func sysHungUp(int32) bool                                       { return false }
func sysShutdownWrite(int32) error                               { return errors.ErrUnsupported }
func sysSockError(int32) syscall.Errno                           { return 0 }
func sysErrorPending(int32) bool                                 { return false }
func sysDisconnected(int32) bool                                 { return false }
func sysClose(int32, bool)                                       {}
func sysCloseFD(int32)                                           {}
func sysDisown(net.Conn)                                         {}
func sysSetNoDelay(int32, bool) error                            { return errors.ErrUnsupported }
func sysLocalAddr(int32, zone) net.Addr                          { return nil }
func tuneDialled(int, bool, bool, *ListenerOptions) error        { return errors.ErrUnsupported }
func sysMultipath(int32) bool                                    { return false }
func sysPeerName(int32) net.Addr                                 { return nil }
func sysZone(int, uint32) zone                                   { return zone{} }
func sysDevice(int) zone                                         { return zone{} }
func sysFileID(string) (fileID, bool)                            { return fileID{}, false }
func sysRemoveOwn(string, fileID)                                {}
func retryable(syscall.Errno) bool                               { return false }
func exhausted(syscall.Errno) bool                               { return false }
func takeListener(net.Listener) (int, error)                     { return -1, errors.ErrUnsupported }
func tuneListener(int, net.KeepAliveConfig, time.Duration) error { return errors.ErrUnsupported }

func sysPipe() ([2]int, error)                              { return [2]int{}, errors.ErrUnsupported }
func sysBoundSplice(int32)                                  {}
func sysClosePipe([2]int)                                   {}
func sysReadPipe(int, []byte) (int, error)                  { return 0, errors.ErrUnsupported }
func sysSplice(int, int, int) (int, syscall.Errno)          { return 0, syscall.ENOTSUP }
func sysSpliceOut(int, int32, int) (int, syscall.Errno)     { return 0, syscall.ENOTSUP }
func accepter(int) func(int) (int, sockaddr, syscall.Errno) { return nil }

func sysGiveAway(int32) (*net.TCPConn, error)       { return nil, errors.ErrUnsupported }
func sysTake(net.Conn) (int32, sockaddr, error)     { return -1, sockaddr{}, errors.ErrUnsupported }
func sysListenerFile(int) (*os.File, error)         { return nil, errors.ErrUnsupported }
func sysListenerCopy(int) (*net.TCPListener, error) { return nil, errors.ErrUnsupported }
func sysPeekAt(int32, []byte) (int, syscall.Errno)  { return 0, syscall.ENOTSUP }
