package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// usage is what has been used so far.
type usage struct {
	server, client int64 // CPU time in ns; an upstream is a client too
	switches       int64
	busy           int64 // ticks of 10 ms, of all processors
}

func sample(server int, clients ...int) (u usage) {
	u.server = cpuTime(server)
	for _, client := range clients {
		u.client += cpuTime(client)
	}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", server))
	for _, t := range tasks {
		u.switches += field(t+"/status", "voluntary_ctxt_switches:") + field(t+"/status", "nonvoluntary_ctxt_switches:")
	}
	data, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(data), "\n")
	for i, f := range strings.Fields(line)[1:] {
		// Without idle and iowait; with steal, which is others too.
		if v, _ := strconv.ParseInt(f, 10, 64); i != 3 && i != 4 && i < 8 {
			u.busy += v
		}
	}
	return u
}

// cpuTime sums the threads of a process, in ns; see proc(5) and the kernel's sched-stats.
func cpuTime(pid int) (ns int64) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	for _, t := range tasks {
		data, _ := os.ReadFile(t)
		if f := strings.Fields(string(data)); len(f) > 0 {
			v, _ := strconv.ParseInt(f[0], 10, 64)
			ns += v
		}
	}
	return ns
}

func status(pid int, key string) int64 { return field(fmt.Sprintf("/proc/%d/status", pid), key) }

func field(file, key string) int64 {
	data, _ := os.ReadFile(file)
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			v, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return v
		}
	}
	return 0
}

// calibrate times a fixed piece of work, in µs: the machine's speed changes by itself. The work is
// what is measured otherwise, small messages over loopback, but in one thread; the best of some
// tries, so that who came in between does not count.
func calibrate() float64 {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var old, first unix.CPUSet
	if unix.SchedGetaffinity(0, &old) == nil {
		first.Set(0)
		_ = unix.SchedSetaffinity(0, &first)
		defer func() { _ = unix.SchedSetaffinity(0, &old) }()
	}
	a, b, err := pair()
	if err != nil {
		return 0
	}
	defer unix.Close(a)
	defer unix.Close(b)
	best := time.Hour
	p := make([]byte, 64)
	for range 8 {
		start := time.Now()
		for range 250 {
			for _, fd := range [...][2]int{{a, b}, {b, a}} {
				_, _ = unix.Write(fd[0], p)
				_, _ = unix.Read(fd[1], p)
			}
		}
		best = min(best, time.Since(start))
	}
	return float64(best.Nanoseconds()) / 1e3
}

// pair connects two sockets over loopback.
func pair() (a, b int, err error) {
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(l)
	if err := unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return 0, 0, err
	}
	if err := unix.Listen(l, 1); err != nil {
		return 0, 0, err
	}
	addr, err := unix.Getsockname(l)
	if err != nil {
		return 0, 0, err
	}
	if a, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return 0, 0, err
	}
	if err = unix.Connect(a, addr); err == nil {
		b, _, err = unix.Accept4(l, unix.SOCK_CLOEXEC)
	}
	if err != nil {
		unix.Close(a)
		return 0, 0, err
	}
	for _, fd := range [...]int{a, b} {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	return a, b, nil
}

// machine says where the figures come from.
func machine() string {
	cpu := ""
	data, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(data)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			cpu = strings.TrimSpace(v)
			break
		}
	}
	var u unix.Utsname
	_ = unix.Uname(&u)
	congestion, _ := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
	return fmt.Sprintf("%s, %d processors, Linux %s, congestion control %s, %s", cpu, runtime.NumCPU(),
		unix.ByteSliceToString(u.Release[:]), strings.TrimSpace(string(congestion)), runtime.Version())
}
