package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
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
	Max      float64 `json:"max_us"`
	Over2ms  int     `json:"over_2ms"` // requests that took longer

	Rate      float64 // requests per second
	CPU       float64 // of the server, µs for each request
	ClientCPU float64 // of the load generator, µs for each request
	Busy      float64 // processors that the server used
	Switches  float64 // context switches of the server, for each request
	Allocs    float64 // objects the server allocated, for each request; negative: it does not tell
	PeakMiB   float64 // resident
	Bytes     float64 // resident for each idle connection, beyond the server without any
	Noise     float64 // share of the two processors that neither server nor client used, nor idled
	Before    float64 // µs that a fixed piece of work took before the run
	After     float64 // and behind it
}

const (
	maxNoise = 0.10 // of a run's processors used by others
	maxDrift = 0.15 // of the machine's speed while a run lasted
)

var errNothing = errors.New("nothing was answered")

// disturbed says why the run should not count; empty when it should.
func (r *run) disturbed() string {
	switch {
	case r.Noise > maxNoise:
		return fmt.Sprintf("DISTURBED: others used %.0f %%", 100*r.Noise)
	case r.Before > 0 && max(r.Before, r.After)/min(r.Before, r.After) > 1+maxDrift:
		return fmt.Sprintf("DISTURBED: the machine's speed changed, %.0f to %.0f µs", r.Before, r.After)
	}
	return ""
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// A process is a server that runs.
type process struct {
	*exec.Cmd
	port     int
	lines    *bufio.Scanner // of its standard output
	isGo     bool
	upstream *process // of a proxy; nil for others
	stopPoll func()
}

// start runs a server; reachable when it returns.
func (o *options) start(mode string, w *workload, s *server, loops int) (p *process, err error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	var upstream *process
	if s.between {
		if upstream, err = o.startUpstream(); err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				upstream.stop()
			}
		}()
	}
	argv := append([]string{filepath.Join(o.bin, s.bin)}, s.argv(port, loops, w)...)
	switch {
	case s.external():
		if argv, err = s.config(o.bin, port, upstream.port); err != nil {
			return nil, err
		}
	case s.between:
		argv = append(argv, "-to", "127.0.0.1:"+strconv.Itoa(upstream.port))
	}
	procs := "GOMAXPROCS=2"
	httpPort := 0
	if s.http {
		if httpPort, err = freePort(); err != nil {
			return nil, err
		}
		argv = append(argv, "-http", strconv.Itoa(httpPort))
	}
	if mode == "pinned" {
		argv = append([]string{"taskset", "-c", "0"}, argv...)
		procs = "GOMAXPROCS=1"
	}
	p = &process{Cmd: exec.Command(argv[0], argv[1:]...), port: port, upstream: upstream,
		isGo: s.bin != "cserver" && !s.external(), stopPoll: func() {}}
	p.Env = append(os.Environ(), procs)
	errs := new(strings.Builder)
	p.Stderr = errs
	out, err := p.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.lines = bufio.NewScanner(out)
	if err := p.Start(); err != nil {
		return nil, err
	}
	if err := reachable(port); err != nil {
		p.stop()
		return nil, fmt.Errorf("%w; the server says: %s", err, errs)
	}
	if s.http {
		p.stopPoll = poll(httpPort)
	}
	return p, nil
}

func (p *process) stop() {
	p.stopPoll()
	if p.upstream != nil {
		p.upstream.stop()
	}
	_ = p.Process.Kill()
	_ = p.Wait()
}

// allocated asks a Go server for the number of objects it has allocated; see the package arg.
func (p *process) allocated() float64 {
	if !p.isGo || p.Process.Signal(syscall.SIGUSR1) != nil {
		return -1
	}
	for p.lines.Scan() {
		if n, err := strconv.ParseFloat(p.lines.Text(), 64); err == nil {
			return n
		} // else it is a line of the library's own
	}
	return -1
}

func reachable(port int) error {
	for limit := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err == nil {
			// A round trip, so that the server is done with starting; whatever it answers.
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			_, _ = c.Write([]byte("x"))
			_, err = c.Read(make([]byte, 1))
			c.Close()
			time.Sleep(20 * time.Millisecond)
			return err
		}
		if time.Now().After(limit) {
			return err
		}
	}
}

// poll asks for a page twenty times a second, as somebody who gathers metrics might in a hurry.
func poll(port int) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			case <-time.After(50 * time.Millisecond):
			}
			if resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", port)); err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		}
	}()
	return func() { close(quit); <-done }
}

// A client is a load generator that runs.
type client struct {
	*exec.Cmd
	in    io.Writer
	lines *bufio.Scanner
}

func (o *options) client(mode string, port int, args ...string) (c *client, err error) {
	if mode == "pinned" {
		args = append(args, "-n", "1")
	}
	c = &client{Cmd: exec.Command(filepath.Join(o.bin, "load"), append(args, "-p", strconv.Itoa(port))...)}
	c.Stderr = os.Stderr
	if c.in, err = c.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.lines = bufio.NewScanner(out)
	return c, c.Start()
}

func (c *client) await(line string) error {
	if !c.lines.Scan() || c.lines.Text() != line {
		return fmt.Errorf("the load generator gave up: %v", c.Wait())
	}
	return nil
}

// once starts the server, drives it, and stops it.
func (o *options) once(mode string, w *workload, s *server, loops int) (r run, err error) {
	p, err := o.start(mode, w, s, loops)
	if err != nil {
		return r, err
	}
	defer p.stop()
	if w.idle > 0 {
		r.Allocs = -1
		r.Bytes, err = o.idleBytes(mode, p, w.idle)
		return r, err
	}
	if w.beside != nil {
		b, err := o.client(mode, p.port, append([]string{"-w", "60"}, w.beside...)...)
		if err != nil {
			return r, err
		}
		defer func() {
			_ = b.Process.Kill()
			_ = b.Wait()
		}()
	}
	r.Before = calibrate()
	c, err := o.client(mode, p.port, append([]string{"-k", "-t", fmt.Sprint(o.seconds * max(1, w.longer)),
		"-w", fmt.Sprint(warmup)}, w.load...)...)
	if err != nil {
		return r, err
	}
	if err := c.await("warm"); err != nil {
		return r, err
	}
	allocs := p.allocated()
	clients := []int{c.Process.Pid}
	if p.upstream != nil {
		clients = append(clients, p.upstream.Process.Pid)
	}
	a := sample(p.Process.Pid, clients...)
	ok := c.lines.Scan()
	b := sample(p.Process.Pid, clients...)
	if ok {
		err = json.Unmarshal(c.lines.Bytes(), &r)
	}
	if allocs >= 0 {
		allocs = p.allocated() - allocs
	}
	_, _ = c.in.Write([]byte("x")) // it has kept its connections so far
	if waitErr := c.Wait(); waitErr != nil || !ok {
		return r, fmt.Errorf("the load generator failed: %v", waitErr)
	}
	if err != nil {
		return r, err
	}
	if r.Requests == 0 {
		return r, errNothing
	}
	n := float64(r.Requests)
	if r.Allocs = allocs; allocs >= 0 {
		r.Allocs /= n
	}
	r.Rate = n / r.Seconds
	r.CPU = float64(b.server-a.server) / 1e3 / n
	r.ClientCPU = float64(b.client-a.client) / 1e3 / n
	r.Busy = float64(b.server-a.server) / 1e9 / r.Seconds
	r.Switches = float64(b.switches-a.switches) / n
	r.PeakMiB = float64(status(p.Process.Pid, "VmHWM:")) / 1024
	// Ticks of all processors that were busy, less what the two of us used.
	busy := float64(b.busy-a.busy) * 1e7
	if w.beside == nil {
		r.Noise = max(0, busy-float64(b.server-a.server)-float64(b.client-a.client)) / (2 * r.Seconds * 1e9)
		r.After = calibrate()
	} else {
		r.Before = 0 // the second load generator is busy too
	}
	return r, nil
}

// idleBytes is the growth of the server's resident memory for each of n connections that have done
// one round trip.
func (o *options) idleBytes(mode string, p *process, n int) (float64, error) {
	before := status(p.Process.Pid, "VmRSS:")
	c, err := o.client(mode, p.port, "-i", strconv.Itoa(n), "-h", "1.5")
	if err != nil {
		return 0, err
	}
	if err := c.await("warm"); err != nil {
		return 0, err
	}
	time.Sleep(time.Second) // for a collector in the background
	after := status(p.Process.Pid, "VmRSS:")
	return float64(after-before) * 1024 / float64(n), c.Wait()
}
