//go:build !linux

// Package sys compiles on other systems, so that programs for several systems can import tcpio.
// Listen fails there, and nothing else of this package is called.
package sys

import (
	"errors"
	"math"
	"net"
	"os"
	"syscall"
	"time"
)

const Supported = false

const VecMax = 64

type Vec struct{ N int }

func (*Vec) Add([]byte) bool { return false }

func Recv(int32, []byte) (int, syscall.Errno) { return 0, syscall.ENOTSUP }
func Peek(int32, []byte) (int, syscall.Errno) { return 0, syscall.ENOTSUP }
func Send(int32, []byte) (int, syscall.Errno) { return 0, syscall.ENOTSUP }
func Sendv(int32, *Vec) (int, syscall.Errno)  { return 0, syscall.ENOTSUP }
func Unread(int32) int                        { return 0 }
func HungUp(int32) bool                       { return false }
func Over(int32) bool                         { return false }
func HasError(int32) bool                     { return false }
func TakeError(int32) syscall.Errno           { return 0 }
func Disconnected(int32) bool                 { return false }
func Delivered(int32) bool                    { return false }
func ShutdownWrite(int32) error               { return errors.ErrUnsupported }
func Close(int32, bool)                       {}
func CloseFD(int32)                           {}

func LimitCalls(int32) error       { return errors.ErrUnsupported }
func SetNoDelay(int32, bool) error { return errors.ErrUnsupported }
func Multipath(int32) bool         { return false }

func TuneListener(int32, net.KeepAliveConfig, time.Duration) error { return errors.ErrUnsupported }
func TuneDialed(int32, bool, bool, net.KeepAliveConfig, time.Duration) error {
	return errors.ErrUnsupported
}

func Socket(string, bool) (int32, error)                             { return -1, errors.ErrUnsupported }
func Bind(int32, net.Addr) error                                     { return errors.ErrUnsupported }
func Connect(int32, net.Addr) error                                  { return errors.ErrUnsupported }
func Connected(int32) (bool, error)                                  { return false, errors.ErrUnsupported }
func LinkLocalAddrs(int32, net.Addr) (peer, local net.Addr, ok bool) { return nil, nil, false }
func SetKeepAlive(int32, net.KeepAliveConfig) error                  { return errors.ErrUnsupported }

type RawSocket int32

func (RawSocket) Control(func(uintptr)) error    { return errors.ErrUnsupported }
func (RawSocket) Read(func(uintptr) bool) error  { return errors.ErrUnsupported }
func (RawSocket) Write(func(uintptr) bool) error { return errors.ErrUnsupported }

func peerName(int32) net.Addr        { return nil }
func Local(int32) Addr               { return Addr{} }
func LocalAddr(int32, Zone) net.Addr { return nil }
func zoneOf(int32, uint32) Zone      { return Zone{} }
func Device(int32) Zone              { return Zone{} }

func Accepter(int32) AcceptFunc    { return nil }
func Retryable(syscall.Errno) bool { return false }
func Exhausted(syscall.Errno) bool { return false }

func TakeListener(net.Listener) (int32, error)    { return -1, errors.ErrUnsupported }
func Take(net.Conn) (int32, Addr, error)          { return -1, Addr{}, errors.ErrUnsupported }
func Disown(net.Conn)                             {}
func DupFile(int32) (*os.File, error)             { return nil, errors.ErrUnsupported }
func DupListener(int32) (*net.TCPListener, error) { return nil, errors.ErrUnsupported }
func GiveAway(int32) (*net.TCPConn, error)        { return nil, errors.ErrUnsupported }

type FileID struct{}

func FileAt(string) (FileID, bool) { return FileID{}, false }
func RemoveFile(string, FileID)    {}

type Pipe struct{}

func NewPipe(int) (Pipe, error)                         { return Pipe{}, errors.ErrUnsupported }
func (Pipe) Close()                                     {}
func (Pipe) Read([]byte) (int, error)                   { return 0, errors.ErrUnsupported }
func (Pipe) SpliceFrom(int32, int) (int, syscall.Errno) { return 0, syscall.ENOTSUP }
func (Pipe) SpliceTo(int32, int) (int, syscall.Errno)   { return 0, syscall.ENOTSUP }
func Unspliceable(syscall.Errno) bool                   { return false }

func MemoryLimit(string) int64 { return math.MaxInt64 }
func MaxDescriptors() int      { return math.MaxInt }
