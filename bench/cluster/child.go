package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/rabbit-backend/tcpio/cluster"
)

const roleVar = "TCPIO_BENCH_CLUSTER_ROLE"

// part runs what this process is for, if it is a child of the benchmark.
func part() bool {
	role, arg, _ := strings.Cut(os.Getenv(roleVar), " ")
	if role == "" {
		return false
	}
	var err error
	if role == "nats" {
		err = runNATS(arg)
	} else {
		err = runServer(role, arg)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, role, err)
		os.Exit(1)
	}
	return true
}

// A child is a process of the benchmark.
type child struct {
	cmd *exec.Cmd
	in  *json.Encoder
	out *bufio.Scanner
}

// start starts a child and returns it with the first line that it prints.
func start(role string) (*child, string, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVar+"="+role)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, "", err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, "", err
	}
	if err := cmd.Start(); err != nil {
		return nil, "", err
	}
	c := &child{cmd, json.NewEncoder(in), bufio.NewScanner(out)}
	if !c.out.Scan() {
		c.kill()
		return nil, "", fmt.Errorf("%s has ended", role)
	}
	return c, c.out.Text(), nil
}

func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

// A command is what a child is asked; a reply its answer.
type command struct {
	Do     string
	Topics int           // pub: over how many topics
	Count  int           // pub: messages; claims: at once; spread: topics for each connection
	Every  time.Duration // pub: between two
	Name   string
}

type reply struct {
	CPU     time.Duration
	Heap    uint64
	Lost    uint64
	Members int
	Whole   bool
	Count   int
	Err     string
}

func (c *child) ask(q command) (r reply, err error) {
	if err = c.in.Encode(q); err != nil {
		return r, err
	}
	if !c.out.Scan() {
		return r, fmt.Errorf("%s: the child has ended", q.Do)
	}
	if err = json.Unmarshal(c.out.Bytes(), &r); err == nil && r.Err != "" {
		err = fmt.Errorf("%s: %s", q.Do, r.Err)
	}
	return r, err
}

// runNATS is one of the NATS servers: a name, a directory, and the addresses of routes.
func runNATS(arg string) error {
	f := strings.Fields(arg)
	routes := server.RoutesFromStr(strings.Join(f[3:], ","))
	host, port, err := net.SplitHostPort(f[2])
	if err != nil {
		return err
	}
	o := &server.Options{ServerName: f[0], Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: f[1], NoSigs: true}
	o.Cluster.Name, o.Cluster.Host = "bench", host
	if _, err := fmt.Sscan(port, &o.Cluster.Port); err != nil {
		return err
	}
	o.Routes = routes
	s, err := server.NewServer(o)
	if err != nil {
		return err
	}
	s.Start()
	if !s.ReadyForConnections(20 * time.Second) {
		return fmt.Errorf("NATS is not ready")
	}
	fmt.Println(s.ClientURL())
	return answer(func(q command, r *reply) error { return nil })
}

// answer answers commands until the parent ends.
func answer(do func(command, *reply) error) error {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var q command
		if err := in.Decode(&q); err != nil {
			return nil // the parent has ended
		}
		var r reply
		if q.Do == "usage" {
			runtime.GC()
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			r.Heap = m.HeapAlloc + m.StackInuse
		}
		if err := do(q, &r); err != nil {
			r.Err = err.Error()
		}
		var u syscall.Rusage
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
		r.CPU = time.Duration(u.Utime.Nano() + u.Stime.Nano())
		if err := out.Encode(r); err != nil {
			return err
		}
	}
}

// runServer is a server of a kind, connected to a NATS server.
func runServer(kind, url string) error {
	var nc *nats.Conn
	if url != "" {
		var err error
		if nc, err = nats.Connect(url, cluster.NATSOptions()...); err != nil {
			return err
		}
	}
	v, err := variants[kind](nc)
	if err != nil {
		return err
	}
	fmt.Println(v.addr)
	return answer(func(q command, r *reply) error { return v.do(q, r) })
}

func (v *variant) do(q command, r *reply) error {
	r.Lost = v.lost()
	switch q.Do {
	case "pub":
		next := time.Now()
		for i := range q.Count {
			time.Sleep(time.Until(next))
			next = next.Add(q.Every)
			p := fmt.Appendf(nil, "@%019d", time.Now().UnixNano())
			for len(p) < 127 {
				p = append(p, '.')
			}
			if err := v.publish(fmt.Sprint("t", i%q.Topics), append(p, '\n')); err != nil {
				return err
			}
		}
	case "conns":
		r.Count = len(v.conns())
	case "members":
		for i := range q.Topics {
			all, whole := v.node.Topic(fmt.Sprint(q.Name, i)).Members()
			r.Members += len(all)
			r.Whole = whole && (r.Whole || i == 0)
		}
	case "spread":
		for i, c := range v.conns() {
			for k := range q.Count {
				t := v.node.Topic(fmt.Sprint("p", (i+k)%q.Topics))
				if err := t.Join(c, &cluster.Member{ID: fmt.Sprint("user ", c.ID())}); err != nil {
					return err
				}
			}
		}
	case "claims":
		return v.claims(q, r)
	}
	return nil
}

// claims has Count goroutines claim keys for the time Every.
func (v *variant) claims(q command, r *reply) error {
	ctx, cancel := context.WithTimeout(context.Background(), q.Every)
	defer cancel()
	conn := v.conns()[0]
	var done atomic.Int64
	var wg sync.WaitGroup
	for g := range q.Count {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				if _, err := v.node.Claim(ctx, fmt.Sprint(q.Name, " ", g, " ", i), conn); err == nil {
					done.Add(1)
				}
			}
		})
	}
	wg.Wait()
	r.Count = int(done.Load())
	return nil
}
