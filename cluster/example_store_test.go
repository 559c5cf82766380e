//go:build linux

package cluster_test

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/cluster"
	"github.com/rabbit-backend/tcpio/cluster/embedded"
)

// storeNode opens a node of a cluster on this machine that has JetStream, for sessions and recorded
// topics, and a listener.
func storeNode(ctx context.Context, o *cluster.Options) (n *cluster.Node, l *tcpio.Listener, end func()) {
	tmp, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	nats, err := embedded.Open(ctx, &embedded.Options{Dir: filepath.Join(tmp, "cluster"), Store: true})
	if err != nil {
		log.Fatal(err)
	}
	n, err = cluster.Open(ctx, nats.Conn(), o)
	if err != nil {
		log.Fatal(err)
	}
	l, err = tcpio.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0"})
	if err != nil {
		log.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- l.Serve(context.Background()) }() // until end
	return n, l, func() {
		l.Close()
		<-served
		n.Close()
		nats.Close()
		os.RemoveAll(tmp)
	}
}

// accepted returns both ends of a new connection.
func accepted(l *tcpio.Listener) (client net.Conn, conn *tcpio.Conn) {
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	for ev := range l.Events() {
		if ev, ok := ev.(tcpio.Opened); ok {
			return client, ev.Conn
		}
	}
	return nil, nil
}

// Ann logs in twice. The second connection gets the key and a larger fence; the first is told, and
// closed.
func ExampleNode_Claim() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	n, l, end := storeNode(ctx, &cluster.Options{Sessions: &cluster.Sessions{}})
	defer end()

	phone, conn := accepted(l)
	defer phone.Close()
	first, err := n.Claim(ctx, "ann", conn)
	if err != nil {
		log.Fatal(err)
	}
	laptop, conn := accepted(l)
	defer laptop.Close()
	second, err := n.Claim(ctx, "ann", conn)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("the fence has grown:", second.Fence() > first.Fence())
	fmt.Println("held:", first.Held(), second.Held())
	for ev := range l.Events() {
		if m, ok := ev.(tcpio.Message); ok {
			if r, ok := m.Value.(cluster.Replaced); ok {
				m.Conn.TryWrite([]byte("you have logged in elsewhere as " + r.Key + "\n"))
				m.Conn.Close()
				break
			}
		}
	}
	line, _ := bufio.NewReader(phone).ReadString('\n')
	fmt.Print("the phone gets: ", line)
	// Output:
	// the fence has grown: true
	// held: false true
	// the phone gets: you have logged in elsewhere as ann
}

// A client that was away gets what it has missed, and then what comes, without a seam. The lines
// have their position in them, from which it goes on.
func ExampleTopic_Resume() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	n, l, end := storeNode(ctx, &cluster.Options{})
	defer end()

	class, err := n.Class(ctx, "chat", cluster.History{PerTopic: 100, Encode: func(rec cluster.Record) []byte {
		return fmt.Appendf(nil, "%s %s\n", rec.Pos, rec.Data)
	}})
	if err != nil {
		log.Fatal(err)
	}
	room := class.Topic("room 1")
	var last cluster.Pos // what the client has seen
	for _, line := range []string{"one", "two", "three"} {
		pos, err := room.PublishRecord(ctx, "", []byte(line))
		if err != nil {
			log.Fatal(err)
		}
		if line == "one" {
			last = pos
		}
	}

	client, conn := accepted(l)
	defer client.Close()
	since, err := cluster.ParsePos(last.String()) // which the client has sent
	if err != nil {
		log.Fatal(err)
	}
	whole, err := room.Resume(ctx, conn, &cluster.Member{ID: "ann"}, since, func(rec cluster.Record) error {
		_, err := conn.Write(fmt.Appendf(nil, "%s %s\n", rec.Pos, rec.Data))
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("whole:", whole)
	if err := room.Publish([]byte("four")); err != nil {
		log.Fatal(err)
	}
	lines := bufio.NewScanner(client)
	for range 3 {
		lines.Scan()
		var pos, text string
		fmt.Sscan(lines.Text(), &pos, &text)
		fmt.Println(text)
	}
	// Output:
	// whole: true
	// two
	// three
	// four
}
