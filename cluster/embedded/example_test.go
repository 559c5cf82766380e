package embedded_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/rabbit-backend/tcpio/cluster/embedded"
)

// Two programs on one machine, here in one process, talk to each other. Neither knows the other's
// address, and it does not matter which starts first.
func ExampleOpen() {
	tmp, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(tmp)
	dir := filepath.Join(tmp, "chat")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	one, err := embedded.Open(ctx, &embedded.Options{Dir: dir})
	if err != nil {
		log.Fatal(err)
	}
	defer one.Close()
	two, err := embedded.Open(ctx, &embedded.Options{Dir: dir})
	if err != nil {
		log.Fatal(err)
	}
	defer two.Close()

	sub, err := one.Conn().SubscribeSync("greetings")
	if err != nil {
		log.Fatal(err)
	}
	// The subscription reaches the other server within milliseconds. cluster.Node has Join and
	// Presence for that; here, what is published before is published again.
	for {
		if err := two.Conn().Publish("greetings", []byte("hello")); err != nil {
			log.Fatal(err)
		}
		if m, err := sub.NextMsg(100 * time.Millisecond); err == nil {
			fmt.Println(string(m.Data))
			return
		}
		if ctx.Err() != nil {
			log.Fatal(ctx.Err())
		}
	}
	// Output: hello
}

// One of three machines, with JetStream. The others differ in Name. Without TLS, which this one
// lacks, Start refuses: the secret would cross the network in the clear.
func ExampleStart() {
	_, err := embedded.Start(context.Background(), &embedded.Machine{
		Name: "a",
		Peers: map[string]string{
			"a": "127.0.0.1:6222",
			"b": "127.0.0.1:6223",
			"c": "10.0.0.3:6222",
		},
		Secret: "read it from a file: 32 bytes or more",
		Store:  "/var/lib/chat",
	})
	fmt.Println(err)
	// Output: embedded: Machine.Peers["c"]: "10.0.0.3:6222" is not a loopback address, and Machine.TLS is nil
}
