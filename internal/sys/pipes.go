package sys

import "sync"

// Pipes hands out empty pipes, and keeps a few of those that come back. It bounds how many are out:
// each takes two descriptors, and the kernel gives an unprivileged user 64 MiB of pipes in all
// (pipe-user-pages-soft, pipe(7)). The zero value works.
type Pipes struct {
	mu   sync.Mutex
	idle []Pipe
	out  int
	over bool
}

const (
	// PipeSize is what a pipe holds, in bytes, where the kernel does not refuse it.
	PipeSize  = 256 << 10
	pipesOut  = 256
	pipesIdle = 8
)

// Get returns an empty pipe. ok is false if enough are out, or there is no free descriptor.
func (ps *Pipes) Get() (p Pipe, ok bool) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.out == pipesOut {
		return p, false
	}
	if n := len(ps.idle); n > 0 {
		p, ps.idle = ps.idle[n-1], ps.idle[:n-1]
	} else {
		var err error
		if p, err = NewPipe(PipeSize); err != nil {
			return p, false
		}
	}
	ps.out++
	return p, true
}

// Put takes a pipe back. One that still holds bytes is closed.
func (ps *Pipes) Put(p Pipe, empty bool) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.out--
	if empty && !ps.over && len(ps.idle) < pipesIdle {
		ps.idle = append(ps.idle, p)
		return
	}
	p.Close()
}

// Close closes those that are kept. Others are closed when they come back.
func (ps *Pipes) Close() {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.over = true
	for _, p := range ps.idle {
		p.Close()
	}
	ps.idle = nil
}
