// Package arg reads what every server of the comparison is told: a port on 127.0.0.1 and a number of loops.
package arg

import (
	"fmt"
	"os"
	"strconv"
)

// Parse reads os.Args: ADDR-PORT LOOPS, and whatever else the server takes.
func Parse() (addr string, loops int, rest []string) {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: server PORT LOOPS")
		os.Exit(2)
	}
	loops, err := strconv.Atoi(os.Args[2])
	if err != nil || loops < 1 {
		fmt.Fprintln(os.Stderr, "bad number of loops:", os.Args[2])
		os.Exit(2)
	}
	return "127.0.0.1:" + os.Args[1], loops, os.Args[3:]
}

// Must ends the server when it cannot serve.
func Must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}
