package tcpio

import (
	"crypto/tls"
	"io"
	"runtime/debug"
)

// User code is called under a guard, and under no lock. ARCHITECTURE.md has the table of all such
// calls.
//
// On a goroutine of the library's it is called by guard: it may panic, or end the goroutine by
// runtime.Goexit, as t.FailNow does, and takes nothing along but what it was called for. On a
// goroutine of the user's (a split function, the body of a range loop, a function passed to
// RawConn, a reader or writer passed to a copy) a panic is the user's and goes on; there deferred
// calls see to it that nothing is left behind.
//
// Where taking long matters, the call is made where it may block: Receive and the hooks lose their
// loop to another goroutine, see loop.takeOver; OnErrorEvent and the Logger have a goroutine of
// their own, see wait.CallQueue.

// guard calls f, which calls user code, in. If that panics, or calls runtime.Goexit, failed is
// called with what happened: a panic is over then, and guard returns false; a goroutine that is
// exiting goes on to do so behind failed, which is the last chance to pass on what the goroutine
// has. recover cannot tell Goexit from panic(nil), which GODEBUG=panicnil=1 allows; only that it
// does not stop it tells.
func guard(in string, f func(), failed func(p *PanicError, exiting bool)) (ok bool) {
	exiting := true
	defer func() {
		if exiting {
			failed(&PanicError{Value: goexit{in}, Stack: debug.Stack()}, true)
		}
	}()
	p := catch(f)
	exiting = false
	if p != nil {
		failed(p, false)
	}
	return p == nil
}

func catch(f func()) (p *PanicError) {
	returned := false
	defer func() {
		if !returned {
			p = &PanicError{Value: recover(), Stack: debug.Stack()}
		}
	}()
	f()
	returned = true
	return nil
}

// elsewhere is guard on a goroutine of its own, which it waits for: for user code that others call
// with their locks held.
func elsewhere(in string, f func()) (p *PanicError) {
	over := make(chan struct{})
	go func() { // it ends with f
		defer close(over)
		guard(in, f, func(what *PanicError, _ bool) { p = what })
	}()
	<-over
	return p
}

// guardTLS returns config, or a copy with a guard around what crypto/tls calls with a lock held:
// the KeyLogWriter, under one of the whole process, and Rand, which with CBC is part of every
// write. All other functions of a config are called in the handshake, which is guarded itself. A
// config that GetConfigForClient returns is taken as it is: a copy of config for that would not see
// what SetSessionTicketKeys changes.
func guardTLS(config *tls.Config) *tls.Config {
	if config == nil || config.KeyLogWriter == nil && config.Rand == nil {
		return config
	}
	config = config.Clone()
	if config.KeyLogWriter != nil {
		config.KeyLogWriter = &guardedIO{in: "TLSConfig.KeyLogWriter", w: config.KeyLogWriter}
	}
	if config.Rand != nil {
		config.Rand = &guardedIO{in: "TLSConfig.Rand", r: config.Rand}
	}
	return config
}

// A guardedIO is a reader or a writer of the user's whose panics are errors.
type guardedIO struct {
	in string
	r  io.Reader
	w  io.Writer
}

func (g *guardedIO) Read(p []byte) (n int, err error) {
	return g.call(func() (int, error) { return g.r.Read(p) })
}

func (g *guardedIO) Write(p []byte) (n int, err error) {
	return g.call(func() (int, error) { return g.w.Write(p) })
}

func (g *guardedIO) call(f func() (int, error)) (n int, err error) {
	if p := elsewhere(g.in, func() { n, err = f() }); p != nil {
		return 0, p
	}
	return n, err
}
