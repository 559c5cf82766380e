package main

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"path"
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
	// run appends the reply to s.out, or returns the error to reply and appends nothing. args are valid for the call.
	run func(s *server, cl *client, args [][]byte) error
	// sub has the arities of subcommands, by lower-case name; the arguments count from the command's name on.
	sub  map[string]int
	asks bool // only asks, and its reply may be long
	now  bool // is run at once between MULTI and EXEC too
}

// keys says where a command's keys are, as COMMAND reports it: first and last place, and the step between them.
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

// find is the command that args ask for, and the error if they cannot be run, which Redis finds before it queues too.
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

// cmdHello is HELLO [version [AUTH username password] [SETNAME name]]. There is one user, default, without a password: any
// will do, as with a Redis that has none set.
func cmdHello(s *server, cl *client, args [][]byte) error {
	resp := cl.resp
	if len(args) > 1 {
		version, ok := parseInt(args[1])
		switch {
		case !ok:
			return errProto
		case version != 2 && version != 3:
			return errNoProto
		}
		resp = int(version)
	}
	var user []byte
	for i := 2; i < len(args); i++ {
		switch left := len(args) - 1 - i; {
		case equalFold(args[i], "AUTH") && left >= 2:
			user = args[i+1]
			i += 2
		case equalFold(args[i], "SETNAME") && left >= 1:
			if err := checkName(args[i+1]); err != nil {
				return err
			}
			cl.name = string(args[i+1]) // stays, as in Redis, when HELLO fails behind it
			i++
		default:
			return replyError(fmt.Sprintf("ERR Syntax error in HELLO option '%s'", args[i][:min(len(args[i]), 128)]))
		}
	}
	if user != nil && string(user) != "default" {
		return errWrongPass
	}
	cl.resp = resp
	s.out = appendMap(s.out, resp, 7)
	for _, field := range [][2]string{{"server", "redis"}, {"version", redisVersion}} {
		s.out = appendBulk(s.out, field[0])
		s.out = appendBulk(s.out, field[1])
	}
	s.out = appendBulk(s.out, "proto")
	s.out = appendInt(s.out, int64(resp))
	s.out = appendBulk(s.out, "id")
	s.out = appendInt(s.out, int64(cl.conn.ID()))
	for _, field := range [][2]string{{"mode", "standalone"}, {"role", "master"}} {
		s.out = appendBulk(s.out, field[0])
		s.out = appendBulk(s.out, field[1])
	}
	s.out = appendBulk(s.out, "modules")
	s.out = appendArray(s.out, 0)
	return nil
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

// cmdSet is SET key value [NX | XX] [EX seconds | PX milliseconds | KEEPTTL]. As in Redis an option may come again, the last
// time counts, and all of them are looked at before the time is.
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

// cmdExpire is EXPIRE key seconds [NX | XX | GT | LT]. A key that stays for ever counts as one with an endless time: GT never
// changes it, LT always.
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

// ttl returns what is left of the key's time in milliseconds, -1 if it stays for ever, -2 if there is no such key.
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

func cmdInfo(s *server, cl *client, args [][]byte) error {
	s.out = appendText(s.out, cl.resp, s.info(args[1:]))
	return nil
}

// cmdCommand is COMMAND [COUNT | DOCS]. redis-cli asks for DOCS at its start and is content with none.
func cmdCommand(s *server, cl *client, args [][]byte) error {
	switch subcommand(args) {
	case "count":
		return s.integer(int64(len(s.commands)))
	case "docs":
		s.out = appendMap(s.out, cl.resp, 0)
		return nil
	}
	s.out = appendArray(s.out, len(s.commands))
	for _, name := range slices.Sorted(maps.Keys(s.commands)) {
		cmd := s.commands[name]
		s.out = appendArray(s.out, 6)
		s.out = appendBulk(s.out, name)
		s.out = appendInt(s.out, int64(cmd.arity))
		s.out = appendSet(s.out, cl.resp, 0) // flags
		s.out = appendInt(s.out, int64(cmd.keys.first))
		s.out = appendInt(s.out, int64(cmd.keys.last))
		s.out = appendInt(s.out, int64(cmd.keys.step))
	}
	return nil
}

// cmdConfig is CONFIG GET pattern ..., with what redis-benchmark asks for and the limits.
func cmdConfig(s *server, cl *client, args [][]byte) error {
	settings := [][2]string{
		{"appendonly", "no"},
		{"databases", "1"},
		{"maxmemory", "0"},
		{"proto-max-bulk-len", fmt.Sprint(maxBulk)},
		{"save", ""},
	}
	settings = slices.DeleteFunc(settings, func(setting [2]string) bool {
		return !slices.ContainsFunc(args[2:], func(pattern []byte) bool {
			matched, err := path.Match(strings.ToLower(string(pattern)), setting[0])
			return matched && err == nil
		})
	})
	s.out = appendMap(s.out, cl.resp, len(settings))
	for _, setting := range settings {
		s.out = appendBulk(s.out, setting[0])
		s.out = appendBulk(s.out, setting[1])
	}
	return nil
}

// cmdClient is CLIENT ID, GETNAME, INFO, LIST, SETINFO and SETNAME.
func cmdClient(s *server, cl *client, args [][]byte) error {
	switch subcommand(args) {
	case "id":
		return s.integer(int64(cl.conn.ID()))
	case "getname":
		if cl.name == "" {
			s.out = appendNull(s.out, cl.resp)
		} else {
			s.out = appendBulk(s.out, cl.name)
		}
		return nil
	case "info":
		s.out = appendText(s.out, cl.resp, cl.String())
		return nil
	case "list":
		list, err := s.listClients()
		if err != nil {
			return err
		}
		s.out = appendText(s.out, cl.resp, list)
		return nil
	case "setname":
		if err := checkName(args[2]); err != nil {
			return err
		}
		cl.name = string(args[2])
	}
	return s.ok() // SETINFO names a client library: nothing to keep.
}

// checkName is what CLIENT SETNAME and HELLO take for a name.
func checkName(name []byte) error {
	if len(name) > maxName {
		return errNameLength
	}
	if bytes.ContainsFunc(name, func(r rune) bool { return r < '!' || r > '~' }) {
		return errClientName
	}
	return nil
}
