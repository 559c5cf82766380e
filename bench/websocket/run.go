package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// figures are what one run gives.
type figures struct {
	Workload, Server string
	Round            int
	Requests         int
	Seconds          float64
	P50, P99, P999   float64 // µs, as the client sees them
	CPU              float64 // µs of the server for each request
	Live             float64 // bytes in use for each idle connection
	Resident         float64 // bytes of resident memory for each idle connection, or growth in all during an attack
}

type bench struct {
	rounds    int
	seconds   float64
	warm      float64 // seconds before an attack is measured, in which what grows has grown
	workloads []workload
	servers   []server
	out       io.Writer
	nice      int // of servers and clients
	results   []figures
}

// run measures. Within a round each server has its turn at a workload, one behind the other, so
// that the machine's changes of speed cancel out in ratios.
func (b *bench) run() (failed int) {
	for round := range b.rounds {
		for _, w := range b.workloads {
			for _, s := range b.servers {
				if !w.has(s) {
					continue
				}
				r, err := b.once(w, s)
				if err != nil {
					fmt.Fprintf(os.Stderr, "round %d, %s, %s: %v\n", round+1, w.name, s.name, err)
					failed++
					continue
				}
				r.Workload, r.Server, r.Round = w.name, s.name, round
				b.results = append(b.results, r)
				fmt.Fprintf(os.Stderr, "%+v\n", r)
			}
		}
	}
	return failed
}

// has reports whether a workload is for a server. Attacks are for ours alone.
func (w workload) has(s server) bool {
	if w.attack != "" {
		return s.ours && !s.raw
	}
	return !w.tls || !s.noTLS
}

// A process is this program in another part.
type process struct {
	*exec.Cmd
	name  string
	lines *bufio.Scanner
}

// start starts a part of the program on a processor, with GOMAXPROCS 1. With a niceness it has a
// session of its own, whose processes Linux schedules as one that has this niceness towards others.
func start(cpu, nice int, args ...string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{Cmd: exec.Command("taskset", append([]string{"-c", strconv.Itoa(cpu), self}, args...)...), name: args[0]}
	p.Env = append(os.Environ(), "GOMAXPROCS=1")
	p.Stderr = os.Stderr
	out, err := p.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.lines = bufio.NewScanner(out)
	p.SysProcAttr = &syscall.SysProcAttr{Setsid: nice != 0}
	if err := p.Start(); err != nil || nice == 0 {
		return p, err
	}
	err = os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", p.Process.Pid), []byte(strconv.Itoa(nice)), 0)
	if err != nil && nice < 0 {
		p.stop()
		return nil, err
	}
	return p, nil
}

func (p *process) stop() {
	_ = p.Process.Kill()
	_ = p.Wait()
}

// line returns the next line that the process prints.
func (p *process) line() (string, error) {
	if !p.lines.Scan() {
		return "", fmt.Errorf("%s has ended: %v", p.name, p.Wait())
	}
	return p.lines.Text(), nil
}

func (p *process) await(want string) error {
	line, err := p.line()
	if err == nil && line != want {
		err = fmt.Errorf("%s prints %q", p.name, line)
	}
	return err
}

func (b *bench) once(w workload, s server) (r figures, err error) {
	addr, err := freeAddr()
	if err != nil {
		return r, err
	}
	server, err := start(0, b.nice, "serve", "-server", s.name, "-addr", addr, "-group="+strconv.FormatBool(w.mode == "group"), "-tls="+strconv.FormatBool(w.tls))
	if err != nil {
		return r, err
	}
	defer server.stop()
	if err := reachable(addr); err != nil {
		return r, err
	}
	raw := "-raw=" + strconv.FormatBool(s.raw)
	if w.idle > 0 {
		return r, idleMemory(&r, server, w.idle, "idle", "-addr", addr, "-conns", strconv.Itoa(w.idle), raw, "-tls="+strconv.FormatBool(w.tls))
	}
	seconds := b.seconds
	if w.mode == "group" {
		seconds *= 3 // it has few requests
	}
	args := []string{"load", "-addr", addr, "-mode", w.mode, "-conns", strconv.Itoa(w.conns), "-size", strconv.Itoa(w.size), raw,
		"-seconds", fmt.Sprint(seconds)}
	before := 0
	if w.attack != "" {
		// It comes behind the client on their processor: the client's own waits are not the server's.
		nice := 19
		if b.nice < 0 {
			nice = b.nice / 2 // before everybody else
		}
		a, err := start(1, nice, "attack", "-addr", addr, "-kind", w.attack)
		if err != nil {
			return r, err
		}
		defer a.stop()
		if err := a.await("attacking"); err != nil {
			return r, err
		}
		args = append(args, "-warm", fmt.Sprint(b.warm))
	}
	client, err := start(1, b.nice, args...)
	if err != nil {
		return r, err
	}
	defer client.stop()
	if err := client.await("warm"); err != nil {
		return r, err
	}
	if w.attack != "" {
		before = resident(server)
	}
	used := cpuTime(server)
	line, err := client.line()
	used = cpuTime(server) - used
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		return r, err
	}
	r.CPU = used.Seconds() * 1e6 / float64(r.Requests)
	if w.attack != "" {
		r.Resident = float64(resident(server) - before)
	}
	return r, nil
}

// idleMemory is how much the server grows by n connections.
func idleMemory(r *figures, server *process, n int, args ...string) error {
	live := func() (float64, error) {
		if err := server.Process.Signal(syscall.SIGUSR1); err != nil {
			return 0, err
		}
		line, err := server.line()
		if err != nil {
			return 0, err
		}
		return strconv.ParseFloat(line, 64)
	}
	before, err := live()
	if err != nil {
		return err
	}
	rss := resident(server)
	client, err := start(1, 0, args...)
	if err != nil {
		return err
	}
	defer client.stop()
	if err := client.await("warm"); err != nil {
		return err
	}
	after, err := live()
	r.Live = (after - before) / float64(n)
	r.Resident = float64(resident(server)-rss) / float64(n)
	return err
}

// freeAddr is an address that nobody listens on. Connections begin at 127.0.0.1, so none takes its port.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func reachable(addr string) error {
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		nc, err := net.Dial("tcp", addr)
		if err == nil {
			return nc.Close()
		}
		if time.Now().After(end) {
			return err
		}
	}
}

// cpuTime sums the threads of a process; see proc(5) and the kernel's sched-stats.
func cpuTime(p *process) (sum time.Duration) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.Process.Pid))
	for _, t := range tasks {
		data, _ := os.ReadFile(t)
		if f := strings.Fields(string(data)); len(f) > 0 {
			ns, _ := strconv.ParseInt(f[0], 10, 64)
			sum += time.Duration(ns)
		}
	}
	return sum
}

// resident is a process's resident memory in bytes.
func resident(p *process) int {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, _ := strconv.Atoi(strings.Fields(rest)[0])
			return kib << 10
		}
	}
	return 0
}
