package main

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"
)

const (
	maxCommandName = 16 // bytes; a longer name is unknown

	// redisVersion is what HELLO and INFO say: clients decide by it what they may ask for.
	redisVersion = "7.0.0"
)

const (
	errNoProto    = replyError("NOPROTO unsupported protocol version")
	errProto      = replyError("ERR Protocol version is not an integer or out of range")
	errWrongPass  = replyError("WRONGPASS invalid username-password pair or user is disabled.")
	errExpireNX   = replyError("ERR NX and XX, GT or LT options at the same time are not compatible")
	errExpireGTLT = replyError("ERR GT and LT options at the same time are not compatible")
	errSyntax     = replyError("ERR syntax error")
	errIndex      = replyError("ERR DB index is out of range")
	errBigReply   = replyError("ERR reply would be too long")
	errClientName = replyError("ERR Client names cannot contain spaces, newlines or special characters.")
	errNameLength = replyError("ERR Client names cannot be this long")
)

// command is one row of the command table.
type command struct {
	name  string
	arity int // arguments with the name; negative for at least so many, as COMMAND reports it
	keys  keys
	// run appends the reply to s.out, or returns the error to reply and appends nothing. args are
	// valid for the call.
	run func(s *server, cl *client, args [][]byte) error
	// sub has the arities of subcommands, by lower-case name; the arguments count from the command's
	// name on.
	sub  map[string]int
	asks bool // only asks, and its reply may be long
	now  bool // is run at once between MULTI and EXEC too
}

// keys says where a command's keys are, as COMMAND reports it: first and last place, and the step
// between them.
type keys struct{ first, last, step int }

// newCommands is the command table.
func newCommands() map[string]*command {
	none, one, all, pairs := keys{}, keys{1, 1, 1}, keys{1, -1, 1}, keys{1, -1, 2}
	table := []command{
		{name: "ping", arity: -1, keys: none, run: cmdPing, asks: true},
		{name: "echo", arity: 2, keys: none, run: cmdEcho, asks: true},
		{name: "quit", arity: -1, keys: none, run: cmdQuit, now: true},
		{name: "hello", arity: -1, keys: none, run: cmdHello},
		{name: "select", arity: 2, keys: none, run: cmdSelect},
		{name: "get", arity: 2, keys: one, run: cmdGet, asks: true},
		{name: "set", arity: -3, keys: one, run: cmdSet},
		{name: "del", arity: -2, keys: all, run: cmdDel},
		{name: "exists", arity: -2, keys: all, run: cmdExists},
		{name: "incr", arity: 2, keys: one, run: cmdIncr},
		{name: "decr", arity: 2, keys: one, run: cmdDecr},
		{name: "incrby", arity: 3, keys: one, run: cmdIncrBy},
		{name: "mget", arity: -2, keys: all, run: cmdMGet, asks: true},
		{name: "mset", arity: -3, keys: pairs, run: cmdMSet},
		{name: "expire", arity: -3, keys: one, run: cmdExpire},
		{name: "ttl", arity: 2, keys: one, run: cmdTTL},
		{name: "pttl", arity: 2, keys: one, run: cmdPTTL},
		{name: "multi", arity: 1, keys: none, run: cmdMulti, now: true},
		{name: "exec", arity: 1, keys: none, run: cmdExec, now: true},
		{name: "discard", arity: 1, keys: none, run: cmdDiscard, now: true},
		{name: "watch", arity: -2, keys: all, run: cmdWatch, now: true},
		{name: "unwatch", arity: 1, keys: none, run: cmdUnwatch},
		{name: "dbsize", arity: 1, keys: none, run: cmdDBSize},
		{name: "flushall", arity: -1, keys: none, run: cmdFlushAll},
		{name: "info", arity: -1, keys: none, run: cmdInfo, asks: true},
		{name: "command", arity: -1, keys: none, run: cmdCommand, asks: true, sub: map[string]int{"count": 2, "docs": -2}},
		{name: "config", arity: -2, keys: none, run: cmdConfig, asks: true, sub: map[string]int{"get": -3}},
		{name: "client", arity: -2, keys: none, run: cmdClient, asks: true, sub: map[string]int{
			"id": 2, "getname": 2, "info": 2, "list": 2, "setinfo": 4, "setname": 3}},
	}
	m := make(map[string]*command, len(table))
	for i := range table {
		m[table[i].name] = &table[i]
	}
	return m
}

// find is the command that args ask for, and the error if they cannot be run, which Redis finds
// before it queues too.
func (s *server) find(args [][]byte) (*command, error) {
	cmd := s.lookup(args[0])
	if cmd == nil {
		return nil, unknownCommand(args)
	}
	if !fits(cmd.arity, args) {
		return cmd, wrongArity(cmd.name)
	}
	if cmd.sub == nil || len(args) == 1 {
		return cmd, nil
	}
	sub := subcommand(args)
	switch arity, ok := cmd.sub[sub]; {
	case !ok:
		return cmd, replyError(fmt.Sprintf("ERR unknown subcommand '%s'. Try %s HELP.",
			args[1][:min(len(args[1]), 128)], strings.ToUpper(cmd.name)))
	case !fits(arity, args):
		return cmd, wrongArity(cmd.name + "|" + sub)
	}
	return cmd, nil
}

func fits(arity int, args [][]byte) bool {
	return len(args) == arity || arity < 0 && len(args) >= -arity
}

// subcommand is the name of the subcommand, "" if there is none or it is too long for one.
func subcommand(args [][]byte) string {
	if len(args) == 1 || len(args[1]) > maxCommandName {
		return ""
	}
	return strings.ToLower(string(args[1]))
}

func (s *server) ok() error {
	s.out = appendSimple(s.out, "OK")
	return nil
}

func (s *server) integer(v int64) error {
	s.out = appendInt(s.out, v)
	return nil
}

func cmdPing(s *server, _ *client, args [][]byte) error {
	switch len(args) {
	case 1:
		s.out = appendSimple(s.out, "PONG")
	case 2:
		s.out = appendBulk(s.out, args[1])
	default:
		return wrongArity("ping")
	}
	return nil
}

func cmdEcho(s *server, _ *client, args [][]byte) error {
	s.out = appendBulk(s.out, args[1])
	return nil
}

func cmdQuit(s *server, cl *client, _ [][]byte) error {
	cl.closing = true
	return s.ok()
}

func cmdSelect(s *server, _ *client, args [][]byte) error {
	switch db, ok := parseInt(args[1]); {
	case !ok:
		return errNotInteger
	case db != 0:
		return errIndex
	}
	return s.ok()
}

func cmdGet(s *server, cl *client, args [][]byte) error {
	s.appendValue(cl, args[1])
	return nil
}

func (s *server) appendValue(cl *client, key []byte) {
	if v, ok := s.store.get(key); ok {
		s.out = appendBulk(s.out, v)
	} else {
		s.out = appendNull(s.out, cl.resp)
	}
}

// cmdSet is SET key value [NX | XX] [EX seconds | PX milliseconds | KEEPTTL]. As in Redis an option
// may come again, the last time counts, and all of them are looked at before the time is.
func cmdSet(s *server, cl *client, args [][]byte) error {
	var nx, xx, keep, ex, px bool
	var ttl []byte
	for i := 3; i < len(args); i++ {
		more := i+1 < len(args)
		switch option := args[i]; {
		case equalFold(option, "NX") && !xx:
			nx = true
		case equalFold(option, "XX") && !nx:
			xx = true
		case equalFold(option, "KEEPTTL") && !ex && !px:
			keep = true
		case equalFold(option, "EX") && !keep && !px && more:
			ex = true
			i++
			ttl = args[i]
		case equalFold(option, "PX") && !keep && !ex && more:
			px = true
			i++
			ttl = args[i]
		default:
			return errSyntax
		}
	}
	deadline := int64(noDeadline)
	if ex || px {
		v, ok := parseInt(ttl)
		switch {
		case !ok:
			return errNotInteger
		case v <= 0 || ex && v > math.MaxInt64/1000:
			return errExpireTime("set")
		case ex:
			v *= 1000
		}
		if deadline, ok = s.store.deadline(v); !ok {
			return errExpireTime("set")
		}
	}
	if nx || xx {
		if exists := s.store.lookup(args[1]) != nil; exists == nx {
			s.out = appendNull(s.out, cl.resp)
			return nil
		}
	}
	if keep {
		s.store.put(args[1], args[2])
	} else {
		s.store.set(args[1], args[2], deadline)
	}
	return s.ok()
}

func equalFold(b []byte, s string) bool { return len(b) == len(s) && bytes.EqualFold(b, []byte(s)) }

func errExpireTime(name string) error {
	return replyError("ERR invalid expire time in '" + name + "' command")
}

func cmdDel(s *server, _ *client, args [][]byte) error {
	n := int64(0)
	for _, key := range args[1:] {
		if s.store.del(key) {
			n++
		}
	}
	return s.integer(n)
}

func cmdExists(s *server, _ *client, args [][]byte) error {
	n := int64(0)
	for _, key := range args[1:] {
		if s.store.lookup(key) != nil {
			n++
		}
	}
	return s.integer(n)
}

func cmdIncr(s *server, _ *client, args [][]byte) error { return s.add(args[1], 1) }
func cmdDecr(s *server, _ *client, args [][]byte) error { return s.add(args[1], -1) }

func cmdIncrBy(s *server, _ *client, args [][]byte) error {
	delta, ok := parseInt(args[2])
	if !ok {
		return errNotInteger
	}
	return s.add(args[1], delta)
}

func (s *server) add(key []byte, delta int64) error {
	v, err := s.store.add(key, delta)
	if err != nil {
		return err
	}
	return s.integer(v)
}

// cmdMGet counts first: a request may name one long value a hundred thousand times.
func cmdMGet(s *server, cl *client, args [][]byte) error {
	size := 0
	for _, key := range args[1:] {
		v, _ := s.store.get(key)
		if size += len(v) + minElement; size > maxReply {
			return errBigReply
		}
	}
	s.out = appendArray(s.out, len(args)-1)
	for _, key := range args[1:] {
		s.appendValue(cl, key)
	}
	return nil
}

func cmdMSet(s *server, _ *client, args [][]byte) error {
	if len(args)%2 == 0 {
		return wrongArity("mset")
	}
	for pair := range slices.Chunk(args[1:], 2) {
		s.store.set(pair[0], pair[1], noDeadline)
	}
	return s.ok()
}

// cmdExpire is EXPIRE key seconds [NX | XX | GT | LT]. A key that stays for ever counts as one with
// an endless time: GT never changes it, LT always.
func cmdExpire(s *server, _ *client, args [][]byte) error {
	var nx, xx, gt, lt bool
	for _, option := range args[3:] {
		switch {
		case equalFold(option, "NX"):
			nx = true
		case equalFold(option, "XX"):
			xx = true
		case equalFold(option, "GT"):
			gt = true
		case equalFold(option, "LT"):
			lt = true
		default:
			return replyError(fmt.Sprintf("ERR Unsupported option %s", option[:min(len(option), 128)]))
		}
	}
	switch {
	case nx && (xx || gt || lt):
		return errExpireNX
	case gt && lt:
		return errExpireGTLT
	}
	seconds, ok := parseInt(args[2])
	if !ok {
		return errNotInteger
	}
	if seconds > math.MaxInt64/1000 || seconds < math.MinInt64/1000 {
		return errExpireTime("expire")
	}
	deadline, ok := s.store.deadline(seconds * 1000)
	if !ok {
		return errExpireTime("expire")
	}
	it := s.store.lookup(args[1])
	if it == nil {
		return s.integer(0)
	}
	timed := it.deadline != noDeadline
	if nx && timed || xx && !timed || gt && deadline <= it.deadline || lt && deadline >= it.deadline {
		return s.integer(0)
	}
	if seconds <= 0 {
		s.store.remove(it)
	} else {
		s.store.expire(it, deadline)
	}
	return s.integer(1)
}

func cmdTTL(s *server, _ *client, args [][]byte) error {
	ttl := s.ttl(args[1])
	if ttl >= 0 {
		ttl = (ttl + 500) / 1000
	}
	return s.integer(ttl)
}

func cmdPTTL(s *server, _ *client, args [][]byte) error { return s.integer(s.ttl(args[1])) }

// ttl returns what is left of the key's time in milliseconds, -1 if it stays for ever, -2 if there
// is no such key.
func (s *server) ttl(key []byte) int64 {
	it := s.store.lookup(key)
	switch {
	case it == nil:
		return -2
	case it.deadline == noDeadline:
		return -1
	}
	// The clock moved since lookup, perhaps past the deadline.
	return max(it.deadline-s.store.millis(), 0)
}

func cmdDBSize(s *server, _ *client, _ [][]byte) error {
	return s.integer(int64(len(s.store.items)))
}

func cmdFlushAll(s *server, _ *client, args [][]byte) error {
	if len(args) > 2 || len(args) == 2 && !equalFold(args[1], "SYNC") && !equalFold(args[1], "ASYNC") {
		return errSyntax
	}
	s.store.flush()
	return s.ok()
}
