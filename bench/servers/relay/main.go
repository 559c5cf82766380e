// Tcpio as a layer-4 proxy: every connection is joined with one to the upstream.
package main

import (
	"context"
	"flag"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/bench/internal/arg"
)

func main() {
	to := flag.String("to", "", "`address` of the upstream")
	addr := arg.Parse()
	var l *tcpio.Listener
	join := tcpio.ActorFunc(func(ev tcpio.Event) error {
		switch ev := ev.(type) {
		case tcpio.Opened:
			_, err := l.DialAsync(tcpio.DialRequest{Address: *to, To: ev.Conn})
			return err
		case tcpio.Dialed:
			if ev.Err != nil {
				return ev.Err
			}
			if _, err := ev.To.Relay(ev.Conn, nil); err != nil {
				ev.Conn.Abort()
				return err
			}
		}
		return nil
	})
	l, err := tcpio.Listen(&tcpio.ListenerOptions{
		Addr: addr, Loops: *arg.Loops,
		NewActor: func(*tcpio.Conn) tcpio.Actor { return join },
	})
	arg.Must(err)
	arg.Must(l.Serve(context.Background()))
}
