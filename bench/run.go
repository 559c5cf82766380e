package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// A run is one server under one workload, once.
type run struct {
	Round    int
	Mode     string
	Workload string
	Server   string

	Requests int     `json:"requests"`
	Seconds  float64 `json:"seconds"`
	P50      float64 `json:"p50_us"`
	P99      float64 `json:"p99_us"`
	P999     float64 `json:"p999_us"`

	Rate     float64 // requests per second
	CPU      float64 // of the server, µs for each request
	Switches float64 // context switches of the server, for each request
	PeakMiB  float64 // resident
	Bytes    float64 // resident for each idle connection, beyond the server without any
	Noise    float64 // share of the two processors that neither server nor client used, nor idled
	Speed    float64 // ns that a fixed piece of work took around the run
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// once starts the server, drives it, and stops it.
func (o *options) once(mode string, w *workload, s *server, loops int) (r run, err error) {
	port, err := freePort()
	if err != nil {
		return r, err
	}
	argv := append([]string{filepath.Join(o.bin, s.bin)}, s.argv(port, loops)...)
	if s.ours {
		argv = append(argv, w.extra...)
	}
	load := []string{filepath.Join(o.bin, "load"), "-p", strconv.Itoa(port)}
	if mode == "pinned" {
		argv = append([]string{"taskset", "-c", "0"}, argv...)
		load = append(load, "-n", "1")
	}
	srv := exec.Command(argv[0], argv[1:]...)
	if err := srv.Start(); err != nil {
		return r, err
	}
	defer func() {
		_ = srv.Process.Kill()
		_ = srv.Wait()
	}()
	if err := reachable(port); err != nil {
		return r, err
	}
	before := calibrate()
	if w.idle > 0 {
		r.Bytes, err = idleBytes(srv.Process.Pid, append(load, "-i", strconv.Itoa(w.idle), "-h", "2"), w.idle)
		return r, err
	}
	load = append(load, "-t", fmt.Sprint(o.seconds), "-w", "1")
	client := exec.Command(load[0], append(load[1:], w.load...)...)
	client.Stderr = os.Stderr
	out, err := client.StdoutPipe()
	if err != nil {
		return r, err
	}
	if err := client.Start(); err != nil {
		return r, err
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "warm" {
		_ = client.Wait()
		return r, errors.New("the load generator gave up")
	}
	a := sample(srv.Process.Pid, client.Process.Pid)
	ok := lines.Scan()
	b := sample(srv.Process.Pid, client.Process.Pid)
	if ok {
		err = json.Unmarshal(lines.Bytes(), &r)
	}
	if waitErr := client.Wait(); waitErr != nil || !ok {
		return r, fmt.Errorf("the load generator failed: %v", waitErr)
	}
	if err != nil {
		return r, err
	}
	if r.Requests == 0 {
		return r, errors.New("nothing was answered")
	}
	n := float64(r.Requests)
	r.Rate = n / r.Seconds
	r.CPU = float64(b.server-a.server) / 1e3 / n
	r.Switches = float64(b.switches-a.switches) / n
	r.PeakMiB = float64(status(srv.Process.Pid, "VmHWM:")) / 1024
	// Ticks of all processors that were busy, less what the two of us used.
	busy := float64(b.busy-a.busy) * 1e7
	r.Noise = max(0, busy-float64(b.server-a.server)-float64(b.client-a.client)) / (2 * r.Seconds * 1e9)
	r.Speed = float64(before+calibrate()) / 2
	return r, nil
}

func reachable(port int) error {
	for limit := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err == nil {
			c.Close()
			time.Sleep(100 * time.Millisecond)
			return nil
		}
		if time.Now().After(limit) {
			return err
		}
	}
}

// idleBytes is the growth of the server's resident memory for each of n connections that have done one round trip.
func idleBytes(pid int, load []string, n int) (float64, error) {
	before := status(pid, "VmRSS:")
	client := exec.Command(load[0], load[1:]...)
	client.Stderr = os.Stderr
	out, err := client.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := client.Start(); err != nil {
		return 0, err
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		return 0, fmt.Errorf("the load generator failed: %v", client.Wait())
	}
	time.Sleep(time.Second) // for a collector in the background
	after := status(pid, "VmRSS:")
	return float64(after-before) * 1024 / float64(n), client.Wait()
}

// usage is what has been used so far.
type usage struct {
	server, client int64 // CPU time in ns
	switches       int64
	busy           int64 // ticks of 10 ms, of all processors
}

func sample(server, client int) (u usage) {
	u.server = cpuTime(server)
	u.client = cpuTime(client)
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", server))
	for _, t := range tasks {
		u.switches += field(t+"/status", "voluntary_ctxt_switches:") + field(t+"/status", "nonvoluntary_ctxt_switches:")
	}
	data, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(data), "\n")
	for i, f := range strings.Fields(line)[1:] {
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

// calibrate times a fixed piece of work: the machine's speed changes by itself.
func calibrate() time.Duration {
	best := time.Hour
	for range 3 {
		start := time.Now()
		x := uint64(1)
		for i := range uint64(2_000_000) {
			x = x*6364136223846793005 + i
		}
		runtime.KeepAlive(&x)
		best = min(best, time.Since(start))
	}
	return best
}
