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

const maxCommandName = 16 // bytes; a longer name is unknown

const (
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
}

// keys says where a command's keys are, as COMMAND reports it: first and last place, and the step between them.
type keys struct{ first, last, step int }

// newCommands is the command table.
//
// HELLO is not in it: to a client that asks for RESP3 the unknown command says that this server speaks RESP2 only.
func newCommands() map[string]*command {
	none, one, all, pairs := keys{}, keys{1, 1, 1}, keys{1, -1, 1}, keys{1, -1, 2}
	table := []command{
		{"ping", -1, none, cmdPing},
		{"echo", 2, none, cmdEcho},
		{"quit", -1, none, cmdQuit},
		{"select", 2, none, cmdSelect},
		{"get", 2, one, cmdGet},
		{"set", -3, one, cmdSet},
		{"del", -2, all, cmdDel},
		{"exists", -2, all, cmdExists},
		{"incr", 2, one, cmdIncr},
		{"decr", 2, one, cmdDecr},
		{"incrby", 3, one, cmdIncrBy},
		{"mget", -2, all, cmdMGet},
		{"mset", -3, pairs, cmdMSet},
		{"expire", 3, one, cmdExpire},
		{"ttl", 2, one, cmdTTL},
		{"pttl", 2, one, cmdPTTL},
		{"dbsize", 1, none, cmdDBSize},
		{"flushall", -1, none, cmdFlushAll},
		{"info", -1, none, cmdInfo},
		{"command", -1, none, cmdCommand},
		{"config", -2, none, cmdConfig},
		{"client", -2, none, cmdClient},
	}
	m := make(map[string]*command, len(table))
	for i := range table {
		m[table[i].name] = &table[i]
	}
	return m
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

func cmdGet(s *server, _ *client, args [][]byte) error {
	s.appendValue(args[1])
	return nil
}

func (s *server) appendValue(key []byte) {
	if v, ok := s.store.get(key); ok {
		s.out = appendBulk(s.out, v)
	} else {
		s.out = appendNull(s.out)
	}
}

// cmdSet is SET key value [NX | XX] [EX seconds | PX milliseconds | KEEPTTL].
func cmdSet(s *server, _ *client, args [][]byte) error {
	var nx, xx, keep bool
	deadline := int64(noDeadline)
	for i := 3; i < len(args); i++ {
		timed := keep || deadline != noDeadline
		switch option := args[i]; {
		case equalFold(option, "NX") && !xx:
			nx = true
		case equalFold(option, "XX") && !nx:
			xx = true
		case equalFold(option, "KEEPTTL") && !timed:
			keep = true
		case equalFold(option, "EX") && !timed && i+1 < len(args), equalFold(option, "PX") && !timed && i+1 < len(args):
			unit := int64(1)
			if equalFold(option, "EX") {
				unit = 1000
			}
			i++
			ttl, ok := parseInt(args[i])
			if !ok {
				return errNotInteger
			}
			if ttl > 0 && ttl <= math.MaxInt64/unit {
				deadline, ok = s.store.deadline(ttl * unit)
			}
			if ttl <= 0 || ttl > math.MaxInt64/unit || !ok {
				return errExpireTime("set")
			}
		default:
			return errSyntax
		}
	}
	if nx || xx {
		if exists := s.store.lookup(args[1]) != nil; exists == nx {
			s.out = appendNull(s.out)
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
func cmdMGet(s *server, _ *client, args [][]byte) error {
	size := 0
	for _, key := range args[1:] {
		v, _ := s.store.get(key)
		if size += len(v) + minElement; size > maxReply {
			return errBigReply
		}
	}
	s.out = appendArray(s.out, len(args)-1)
	for _, key := range args[1:] {
		s.appendValue(key)
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

func cmdExpire(s *server, _ *client, args [][]byte) error {
	seconds, ok := parseInt(args[2])
	if !ok {
		return errNotInteger
	}
	if seconds > math.MaxInt64/1000 || seconds < math.MinInt64/1000 {
		return errExpireTime("expire")
	}
	it := s.store.lookup(args[1])
	if it == nil {
		return s.integer(0)
	}
	deadline, ok := s.store.deadline(seconds * 1000)
	switch {
	case !ok:
		return errExpireTime("expire")
	case seconds <= 0:
		s.store.remove(it)
	default:
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

func cmdInfo(s *server, _ *client, args [][]byte) error {
	s.out = appendBulk(s.out, s.info(args[1:]))
	return nil
}

// unknownSubcommand is the error for COMMAND, CONFIG and CLIENT.
func unknownSubcommand(args [][]byte) error {
	return replyError(fmt.Sprintf("ERR unknown subcommand '%s'. Try %s HELP.",
		args[1][:min(len(args[1]), 128)], bytes.ToUpper(args[0])))
}

// cmdCommand is COMMAND [COUNT | DOCS]. redis-cli asks for DOCS at its start and is content with none.
func cmdCommand(s *server, _ *client, args [][]byte) error {
	switch {
	case len(args) == 1:
		s.out = appendArray(s.out, len(s.commands))
		for _, name := range slices.Sorted(maps.Keys(s.commands)) {
			cmd := s.commands[name]
			s.out = appendArray(s.out, 6)
			s.out = appendBulk(s.out, name)
			s.out = appendInt(s.out, int64(cmd.arity))
			s.out = appendArray(s.out, 0) // flags
			s.out = appendInt(s.out, int64(cmd.keys.first))
			s.out = appendInt(s.out, int64(cmd.keys.last))
			s.out = appendInt(s.out, int64(cmd.keys.step))
		}
	case equalFold(args[1], "COUNT") && len(args) == 2:
		return s.integer(int64(len(s.commands)))
	case equalFold(args[1], "DOCS"):
		s.out = appendArray(s.out, 0)
	default:
		return unknownSubcommand(args)
	}
	return nil
}

// cmdConfig is CONFIG GET pattern ..., with what redis-benchmark asks for and the limits.
func cmdConfig(s *server, _ *client, args [][]byte) error {
	if !equalFold(args[1], "GET") {
		return unknownSubcommand(args)
	}
	if len(args) < 3 {
		return wrongArity("config|get")
	}
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
	s.out = appendArray(s.out, 2*len(settings))
	for _, setting := range settings {
		s.out = appendBulk(s.out, setting[0])
		s.out = appendBulk(s.out, setting[1])
	}
	return nil
}

// cmdClient is CLIENT ID, GETNAME, INFO, LIST, SETINFO and SETNAME.
func cmdClient(s *server, cl *client, args [][]byte) error {
	sub := strings.ToLower(string(args[1][:min(len(args[1]), maxCommandName)]))
	arity, known := map[string]int{"id": 2, "getname": 2, "info": 2, "list": 2, "setinfo": 4, "setname": 3}[sub]
	if !known {
		return unknownSubcommand(args)
	}
	if len(args) != arity {
		return wrongArity("client|" + sub)
	}
	switch sub {
	case "id":
		return s.integer(int64(cl.conn.ID()))
	case "getname":
		if cl.name == "" {
			s.out = appendNull(s.out)
			return nil
		}
		s.out = appendBulk(s.out, cl.name)
		return nil
	case "info":
		s.out = appendBulk(s.out, cl.String())
		return nil
	case "list":
		list, err := s.listClients()
		if err != nil {
			return err
		}
		s.out = appendBulk(s.out, list)
		return nil
	case "setname":
		name := args[2]
		if len(name) > maxName {
			return errNameLength
		}
		if bytes.ContainsFunc(name, func(r rune) bool { return r < '!' || r > '~' }) {
			return errClientName
		}
		cl.name = string(name)
	}
	return s.ok() // SETINFO names a client library: nothing to keep.
}
