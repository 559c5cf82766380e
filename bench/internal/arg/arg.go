// Package arg is what the servers of the comparison have in common: what they are told, and how
// they tell what they allocated.
package arg

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
)

// The command line of every server is FLAGS [ROUTE]; some have further flags.
var (
	port = flag.Int("port", 0, "of 127.0.0.1 to listen on")

	// Loops is how many loops to run.
	Loops = flag.Int("loops", 1, "loops")
	// Buf is the size of a buffer that belongs to one connection, where a server has such.
	Buf = flag.Int("buf", 4<<10, "`bytes` of a buffer that belongs to one connection")
	// Short is for servers that are better set up differently when connections are short.
	Short = flag.Bool("short", false, "connections make one request each")
)

// Parse reads the command line and returns the address to listen on. From then on the signal USR1
// is answered with a line on standard output: the number of objects allocated so far.
func Parse() (addr string) {
	flag.Parse()
	if *port == 0 || *Loops < 1 || *Buf < 1 {
		fmt.Fprintln(os.Stderr, "server: no port, no loop or no buffer")
		os.Exit(2)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1)
	go func() {
		var m runtime.MemStats
		for range signals {
			runtime.ReadMemStats(&m) // stops the world, but counts every object; the package metrics lags
			fmt.Println(m.Mallocs)
		}
	}()
	return fmt.Sprintf("127.0.0.1:%d", *port)
}

// Must ends the server when it cannot serve.
func Must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}
