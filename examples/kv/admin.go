package main

import (
	"bytes"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// cmdHello is HELLO [version [AUTH username password] [SETNAME name]]. There is one user, default,
// without a password: any will do, as with a Redis that has none set.
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

func cmdInfo(s *server, cl *client, args [][]byte) error {
	s.out = appendText(s.out, cl.resp, s.info(args[1:]))
	return nil
}

// cmdCommand is COMMAND [COUNT | DOCS]. redis-cli asks for DOCS at its start and is content with
// none.
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
