package main

import (
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Clients are connections that look for the time in what they get, whatever is around it.
type clients struct {
	conns []net.Conn
	got   atomic.Int64
	heard []atomic.Bool

	mu    sync.Mutex
	since int64 // in Unix nanoseconds: what was sent before counts for heard alone
	delay []time.Duration
}

func connect(kind string, addrs []string, n int) (*clients, error) {
	c := &clients{heard: make([]atomic.Bool, n)}
	for i := range n {
		conn, err := net.Dial("tcp", addrs[i%len(addrs)])
		if err != nil {
			c.close()
			return nil, err
		}
		c.conns = append(c.conns, conn)
		if isWebSocket(kind) {
			if err := upgrade(conn); err != nil {
				c.close()
				return nil, err
			}
		}
		go c.read(i, conn) // until close
	}
	return c, nil
}

func (c *clients) close() {
	for _, conn := range c.conns {
		conn.Close()
	}
}

func (c *clients) join(kind string, topics int) error {
	for i, conn := range c.conns {
		topic := fmt.Sprint("t", i%topics)
		var err error
		switch kind {
		case "centrifuge":
			err = sendText(conn, `{"id":1,"connect":{}}`+"\n"+`{"id":2,"subscribe":{"channel":"`+topic+`"}}`)
		case "cluster-ws":
			err = sendText(conn, topic)
		default:
			_, err = conn.Write([]byte(topic + "\n"))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *clients) read(i int, conn net.Conn) {
	buf := make([]byte, 4096)
	held := 0
	for {
		n, err := conn.Read(buf[held:])
		if err != nil {
			return
		}
		now, b := time.Now().UnixNano(), buf[:held+n]
		for {
			at := slices.Index(b, '@')
			if at < 0 {
				b = nil
				break
			}
			if b = b[at:]; len(b) < 20 {
				break
			}
			if sent, err := strconv.ParseInt(string(b[1:20]), 10, 64); err == nil {
				c.heard[i].Store(true)
				c.count(sent, now)
			}
			b = b[1:]
		}
		held = copy(buf, b)
	}
}

// count counts a delivery, unless it was sent before reset.
func (c *clients) count(sent, now int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if sent >= c.since {
		c.got.Add(1)
		c.delay = append(c.delay, time.Duration(now-sent))
	}
}

func (c *clients) silent() (n int) {
	for i := range c.heard {
		if !c.heard[i].Load() {
			n++
		}
	}
	return n
}

// settle waits until nothing has come for 300 ms.
func (c *clients) settle() {
	last := c.got.Load()
	for begun := time.Now(); time.Since(begun) < 300*time.Millisecond; time.Sleep(10 * time.Millisecond) {
		if got := c.got.Load(); got != last {
			last, begun = got, time.Now()
		}
	}
}

func (c *clients) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.delay = nil
	c.got.Store(0)
	c.since = time.Now().UnixNano()
}

// await waits for so many deliveries, or until none has come for ten seconds.
func (c *clients) await(want int) {
	last := c.got.Load()
	for begun := time.Now(); int(last) < want && time.Since(begun) < 10*time.Second; time.Sleep(10 * time.Millisecond) {
		if got := c.got.Load(); got != last {
			last, begun = got, time.Now()
		}
	}
}

func (c *clients) latency() (p50, p99 time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	slices.Sort(c.delay)
	if n := len(c.delay); n > 0 {
		p50, p99 = c.delay[n/2], c.delay[n*99/100]
	}
	return p50.Round(10 * time.Microsecond), p99.Round(10 * time.Microsecond)
}

func isWebSocket(kind string) bool { return kind == "cluster-ws" || kind == "centrifuge" }

func upgrade(conn net.Conn) error {
	_, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	if err != nil {
		return err
	}
	var head []byte
	for one := make([]byte, 1); !strings.HasSuffix(string(head), "\r\n\r\n"); head = append(head, one[0]) {
		if _, err := conn.Read(one); err != nil {
			return err
		}
	}
	if !strings.HasPrefix(string(head), "HTTP/1.1 101") {
		return fmt.Errorf("no WebSocket: %.100q", head)
	}
	return nil
}

// sendText sends a short text message, with a mask of zeros.
func sendText(conn net.Conn, text string) error {
	if len(text) > 125 {
		return fmt.Errorf("%d bytes are too long", len(text))
	}
	_, err := conn.Write(append([]byte{0x81, 0x80 | byte(len(text)), 0, 0, 0, 0}, text...))
	return err
}
