package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// redis starts a Redis of the version that this server follows, until the test ends, and returns
// its unix socket. Without one nothing has been started when the test skips.
func redis(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		t.Skip("SKIPPED: redis-server not installed: THE REPLIES ARE NOT COMPARED WITH THOSE OF REDIS (apt-get install redis-server)")
	}
	if version, err := exec.Command(path, "--version").Output(); err != nil || !bytes.Contains(version, []byte(" v=7.0.")) {
		t.Skipf("SKIPPED: this is no Redis 7.0, whose replies are the model: %s", version)
	}
	dir, err := os.MkdirTemp("", "kv") // a socket's path has to be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, path, "--port", "0", "--unixsocket", socket, "--save", "", "--databases", "1", "--dir", dir)
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); _ = cmd.Wait() })
	eventually(t, "Redis listens", func() bool {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return socket
}

// twins are two connections: one to this server, one to Redis.
type twins struct {
	t     *testing.T
	conns [2]net.Conn
	r     [2]*bufio.Reader
}

func dialTwins(t *testing.T, addr, socket string) *twins {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	tw := &twins{t: t, conns: [2]net.Conn{dial(t, addr), c}}
	for i, c := range tw.conns {
		tw.r[i] = bufio.NewReader(c)
	}
	return tw
}

// same sends requests to both, in one piece, and fails unless every reply is the same to the byte.
func (tw *twins) same(requests ...string) {
	tw.t.Helper()
	for _, c := range tw.conns {
		if _, err := io.WriteString(c, strings.Join(requests, "")); err != nil {
			tw.t.Fatal(err)
		}
	}
	for _, request := range requests {
		var got [2]string
		for i, r := range tw.r {
			raw, err := rawReply(r)
			if err != nil {
				tw.t.Fatalf("%.200q: %v behind %q", request, err, raw)
			}
			got[i] = common(string(raw))
		}
		if got[0] != got[1] {
			tw.t.Fatalf("%.200q\n%.1000q, but Redis\n%.1000q", request, got[0], got[1])
		}
	}
}

// sameEnd sends in and fails unless both say the same and then end the connection.
func (tw *twins) sameEnd(in string) {
	tw.t.Helper()
	var got [2]string
	for i, c := range tw.conns {
		_, _ = io.WriteString(c, in) // the end may come before it is all sent
		b, err := io.ReadAll(tw.r[i])
		if nerr, ok := err.(net.Error); ok && nerr.Timeout() {
			tw.t.Fatalf("%.200q: no end of connection %d", in, i)
		}
		got[i] = string(b)
	}
	if got[0] != got[1] {
		tw.t.Errorf("%.200q\n%.1000q, but Redis\n%.1000q", in, got[0], got[1])
	}
}

// rawReply reads one reply of either version of the protocol.
func rawReply(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadBytes('\n')
	if err != nil || !bytes.HasSuffix(line, []byte("\r\n")) {
		return line, fmt.Errorf("no line: %w", err)
	}
	n := 0
	switch line[0] {
	case '+', '-', ':', '_':
		return line, nil
	case '$', '=', '*', '~', '%':
		if n, err = strconv.Atoi(string(line[1 : len(line)-2])); err != nil || n < 0 {
			return line, err
		}
	default:
		return line, fmt.Errorf("no reply begins with %q", line[0])
	}
	if line[0] == '$' || line[0] == '=' {
		line = slices.Grow(line, n+2)
		m, err := io.ReadFull(r, line[len(line):len(line)+n+2])
		return line[:len(line)+m], err
	}
	if line[0] == '%' {
		n *= 2
	}
	for range n {
		element, err := rawReply(r)
		line = append(line, element...)
		if err != nil {
			return line, err
		}
	}
	return line, nil
}

var (
	version = regexp.MustCompile(`\r\nversion\r\n\$\d+\r\n[0-9.]+\r\n`)
	id      = regexp.MustCompile(`\r\nid\r\n:\d+\r\n`)
	number  = regexp.MustCompile(`:\d{3,}\r\n`)
)

// common takes out of a reply what two servers cannot have in common: version and ID in HELLO's,
// and how much of a time to live is over. Such times are whole thousands of seconds here, of which
// less than a minute is over.
func common(reply string) string {
	reply = version.ReplaceAllString(reply, "\r\nversion\r\n")
	reply = id.ReplaceAllString(reply, "\r\nid\r\n")
	return number.ReplaceAllStringFunc(reply, func(s string) string {
		v, err := strconv.ParseUint(s[1:len(s)-2], 10, 64)
		if err != nil || v%1000 < 940 {
			return s
		}
		return fmt.Sprintf(":%d\r\n", v+1000-v%1000)
	})
}

func TestEveryReplyIsThatOfRedis(t *testing.T) {
	socket := redis(t)
	addr := start(t)
	for name, script := range map[string]string{
		"hello": `hello 3|hello|get nosuch|mget nosuch nosuch|set nosuch 1 xx|client getname|config get save|config get nosuch|
			command docs nosuch|hello 2|hello|get nosuch|hello 1|hello 4|hello x|hello ""|hello 03|hello -3|hello 3 auth|hello 3 auth default|
			hello 3 auth default pw|hello 2 auth u pw|hello 3 setname|hello 3 setname "a b"|hello 3 setname x auth u p|client getname|
			hello 3 setname x auth default p|client getname|hello setname a|hello 3 auth default p setname "a b"|client getname|hello 3 foo|
			HELLO 3 SetName y|client getname|hello 2 setname ""|client getname|hello 9 setname z foo|client getname|hello 3 "a\r\nb"|
			hello 3 setname a setname b|client getname|hello 99999999999999999999`,
		"multi": `exec|discard|exec a|discard a|multi a|multi|multi|set a 1|get a|exec|multi|exec|multi|nosuch|set a 2|exec|get a|
			multi|set a|exec|multi|exec a|exec|multi|discard a|exec|multi|discard|exec|multi|set a x|incr a|expire a 10 foo|mset a|get a|exec|
			multi|client nosuch|exec|multi|client id 1|exec|multi|config|exec|multi|command nosuch|exec|multi|"\r\nx"|exec|
			multi|hello 3|get nosuch|mget nosuch|exec|get nosuch|multi|hello 5|hello 2|get nosuch|exec|multi|MULTI|Set a 5|EXEC|multi||ping|exec|
			multi|discard|multi|ping a b|select 1|echo x|exec|multi|exec x|get a|exec|hello 3|multi|nosuch|exec|multi|exec`,
		"watch": `unwatch|watch|watch a|unwatch|watch a|set a 1|multi|get a|exec|multi|get a|exec|watch a b|set c 1|multi|get a|exec|
			watch a|set a 3|unwatch|multi|get a|exec|watch a|set a 3|multi|discard|multi|get a|exec|multi|watch a|set a 4|exec|multi|watch|exec|
			multi|unwatch|exec|watch a|del a|multi|exec|watch a|del a|multi|exec|watch a|set a 1|del a|multi|exec|set a 1|watch a|expire a 1000|
			multi|exec|watch a|expire a 1000 nx|multi|exec|watch a|expire a -1|multi|exec|watch a|flushall|multi|exec|set a 1|watch a|flushall|
			multi|exec|watch a|incr a|multi|incr a|exec|hello 3|watch a|incr a|multi|exec|hello 2|watch a|multi|nosuch|exec|multi|exec|
			watch a|set a 2|multi|nosuch|exec|watch a|set a 3 nx|multi|exec|watch a|multi|set a 9|exec|watch a a|mset b 1 a 2|multi|exec|
			set a x|watch a|incr a|multi|exec|watch a|exec|set a 1|multi|exec`,
		"expire": `set a 1|expire a 10000 nx|ttl a|expire a 20000 nx|expire a 100000 xx|expire a 10000 gt|ttl a|expire a 1000000 gt|ttl a|
			expire a 100000 lt|ttl a|expire a 1000000 lt|expire a 10 nx xx|expire a 10 nx gt|expire a 10 nx lt|expire a 10 gt lt|
			expire a 10 gt lt nx|expire a 10 xx nx gt|expire a 10 foo|expire a foo foo|expire a foo nx xx|expire a foo xx|expire a 10000 xx gt|
			expire a 200000 xx gt|expire a 5000 xx lt|ttl a|expire a 6000 XX XX|expire a 7000 Gt gT|expire nosuch 10 gt|expire nosuch foo|
			expire nosuch 10 nx|expire a -1 gt|expire a -1 lt|get a|set a 1|expire a 1000 gt|ttl a|expire a 1000 xx|expire a 1000 lt|ttl a|
			set a 1|expire a -1 gt|expire a 0 xx|expire a 0 nx|get a|expire nosuch 9223372036854775|expire nosuch 9223372036854776|
			expire nosuch 9223372036854775807|expire nosuch 9223372036854775808|set a 1|expire a 9223372036854775 nx|
			expire a -9223372036854775|set a 1|expire a -9223372036854776|expire a|expire|expire a 10 ""|expire a 1000 nx nx|ttl a`,
		"set": `set k v ex x nx xx|set k v ex 1000 ex 2000|ttl k|set k v ex 10 px 20000|set k v keepttl keepttl|ttl k|set k v keepttl ex 1|
			set k v nx nx|set k v ex|set k v ex 0 nx xx|set k v ex 9223372036854775|set k v px 9223372036854775807|set k v nx ex 0|
			set k v px 3000000|ttl k|set k v|ttl k|pttl k|set k v xx ex 5000|ttl k|set k v ex nx|set k v ex nx nx|set n 1 nx px 4000000|ttl n`,
		"rest": `ping|ping a|ping a b|echo|echo a|select 0|select 1|select x|select|nosuch|nosuch a "b\r\nc"|get|get a b|mget|mset a|mset a b c|
			mset a 1 b 2 a 3|mget a b c|incr a|incrby a 10|incrby a x|incrby a|decr a|incr "a b"|set a 9223372036854775807|incr a|
			set a -9223372036854775808|decr a|set a " 1"|incr a|set a -0|incr a|set a 01|incr a|set a ""|incr a|get a|exists a a nosuch|
			del a a nosuch|exists|del|dbsize|dbsize 1|flushall now|flushall a b|flushall sync|FLUSHALL ASYNC|dbsize|ttl nosuch|pttl nosuch|
			ttl|client|client id x|client nosuch|client setname|client getname a|client setname "a b"|client setname ok|client getname|
			client setname ""|client getname|config|config get|config nosuch|config get appendonly|config get databases|config get maxm?mory|
			command nosuch|command count x|command docs nosuch|"quoted" 'arguments'|"PING"|pin\x67|"\x50ing"`,
	} {
		t.Run(name, func(t *testing.T) {
			tw := dialTwins(t, addr, socket)
			tw.same("flushall\r\n")
			for request := range strings.SplitSeq(script, "|") {
				if request = strings.TrimSpace(request); request != "" {
					tw.same(request + "\r\n")
				}
			}
		})
	}
}

// What ends a connection ends it in both, with the same last words, and what came behind it is not
// run.
func TestEveryEndIsThatOfRedis(t *testing.T) {
	socket := redis(t)
	addr := start(t)
	browser := "POST / HTTP/1.1\r\nHost: 127.0.0.1:6379\r\nContent-Type: text/plain\r\n\r\nset owned 1\r\n"
	for _, in := range []string{
		browser, strings.ToLower(browser), strings.Replace(browser, "POST", "Get", 1), strings.Replace(browser, "POST", "PUT", 1),
		strings.Replace(browser, "POST", "PUT", 1)[10:], "HOST: x\r\nset owned 1\r\n", "host: \r\nset owned 1\r\n", "post\r\nset owned 1\r\n",
		"\"post\" x\r\nset owned 1\r\n", "\r\n \r\nPOST\r\n",
		string(encode("POST")), string(encode("pOsT", "/", "HTTP/1.1")), string(encode("Host:", "x")), string(encode("POST\x00")),
		string(encode("post\x00a")),
		"*0\r\nPOST / HTTP/1.1\r\n", string(encode("QUIT")) + "set owned 1\r\n", "quit now\r\n", "get \"a\r\n", "get \"a\"b\r\n",
		"*1\r\n:4\r\n", "*1\r\n$x\r\n", "*1\r\n$-1\r\n", "*x\r\n", "*2147483648\r\n",
	} {
		tw := dialTwins(t, addr, socket)
		tw.sameEnd(in)
		tw = dialTwins(t, addr, socket)
		tw.same("multi\r\n", "set owned 1\r\n")
		tw.sameEnd(in)
	}
	dialTwins(t, addr, socket).same("get owned\r\n", "dbsize\r\n")
}

// Two connections say at random what these commands are made of, in pieces of up to 20 requests.
func TestRandomCommandsHaveTheRepliesOfRedis(t *testing.T) {
	socket := redis(t)
	addr := start(t)
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(1, seed))
			conns := []*twins{dialTwins(t, addr, socket), dialTwins(t, addr, socket)}
			conns[0].same("flushall\r\n")
			for range 150 {
				requests := make([]string, 1+rnd.IntN(20))
				for i := range requests {
					requests[i] = randomRequest(rnd)
				}
				conns[rnd.IntN(2)].same(requests...)
			}
		})
	}
}

func randomRequest(rnd *rand.Rand) string {
	one := func(words string) string { all := strings.Fields(words); return all[rnd.IntN(len(all))] }
	key := func() string { return one("a b c d") }
	value := func() string { return one("1 2 -7 x 9223372036854775807 01 longer-value") }
	// No time comes twice: which of two equal ones ends first is the clock's business.
	seconds := func() string {
		return one("-1 0 x " + strings.Repeat(fmt.Sprint(1+rnd.Int64N(1<<40), "000 "), 9))
	}
	var args []string
	switch one("get get set set mget del exists incr incrby mset expire expire expire ttl multi multi exec exec exec discard watch unwatch " +
		"hello client flushall dbsize ping echo nosuch select arity") {
	case "get":
		args = []string{"GET", key()}
	case "set":
		args = []string{"SET", key(), value()}
		for range rnd.IntN(4) - 1 {
			switch option := one("NX xx KEEPTTL EX wrong"); option {
			case "EX":
				args = append(args, option, seconds())
			default:
				args = append(args, option)
			}
		}
	case "mget":
		args = []string{"MGET", key(), key(), key()}
	case "del":
		args = []string{one("DEL EXISTS"), key(), key()}
	case "exists":
		args = []string{"EXISTS", key()}
	case "incr":
		args = []string{one("INCR DECR"), key()}
	case "incrby":
		args = []string{"INCRBY", key(), value()}
	case "mset":
		args = []string{"MSET", key(), value(), key(), value()}
	case "expire":
		args = []string{"EXPIRE", key(), seconds()}
		for range rnd.IntN(4) - 1 {
			args = append(args, one("NX XX GT LT gt lt xx wrong"))
		}
	case "ttl":
		args = []string{"TTL", key()}
	case "multi":
		args = []string{"MULTI"}
	case "exec":
		args = []string{"EXEC"}
	case "discard":
		args = []string{"DISCARD"}
	case "watch":
		args = []string{"WATCH", key()}
	case "unwatch":
		args = []string{"UNWATCH"}
	case "hello":
		args = []string{"HELLO", one("2 2 3 3 3 1 x")}
		if rnd.IntN(3) == 0 {
			args = append(args, strings.Fields([]string{"AUTH default p", "AUTH u p", "SETNAME n", "SETNAME", "AUTH a", "what"}[rnd.IntN(6)])...)
		}
	case "client":
		args = [][]string{{"CLIENT", "GETNAME"}, {"CLIENT", "SETNAME", value()}, {"CLIENT", "what"}, {"CLIENT"}}[rnd.IntN(4)]
	case "flushall":
		args = []string{"FLUSHALL"}
		if rnd.IntN(3) > 0 {
			args = append(args, "what")
		}
	case "dbsize":
		args = []string{"DBSIZE"}
	case "ping":
		args = []string{"PING", "x"}[:1+rnd.IntN(2)]
	case "echo":
		args = []string{"ECHO", value()}
	case "nosuch":
		args = []string{"NOSUCH", value(), key()}[:1+rnd.IntN(3)]
	case "select":
		args = []string{"SELECT", one("0 1 x")}
	case "arity":
		args = []string{one("GET SET MGET DEL INCR EXPIRE TTL MULTI EXEC DISCARD WATCH UNWATCH DBSIZE"), "a", "b", "c", "d"}[:1+rnd.IntN(5)]
	}
	if rnd.IntN(4) == 0 {
		return strings.Join(args, " ") + "\r\n"
	}
	return string(encode(args...))
}
