package main

import "strings"

// A class says where a command is carried out.
type class int

const (
	shared  class = iota // on one of the few connections that all clients share
	local                // here
	lease                // on a connection of the client's own, until its replies are there and no transaction is open
	forLife              // likewise, for as long as the client is connected: what it sets stays set
	refused              // nowhere: it means something only on a connection that the client has had to itself
)

// classes has the commands that are not shared. Names are in capitals.
var classes = func() map[string]class {
	m := map[string]class{}
	for c, names := range map[class]string{
		local:   "QUIT HELLO CLIENT SELECT",
		lease:   "BLPOP BRPOP BRPOPLPUSH BLMOVE BLMPOP BZPOPMIN BZPOPMAX BZMPOP MULTI WATCH",
		forLife: "SUBSCRIBE PSUBSCRIBE SSUBSCRIBE UNSUBSCRIBE PUNSUBSCRIBE SUNSUBSCRIBE MONITOR AUTH RESET SYNC PSYNC REPLCONF READONLY READWRITE ASKING",
		refused: "WAIT WAITAOF",
	} {
		for _, name := range strings.Fields(names) {
			m[name] = c
		}
	}
	return m
}()

// classify says where the request with these arguments is carried out. name is the first one in
// capitals.
func classify(name string, args [][]byte) class {
	c := classes[name]
	switch name {
	case "XREAD", "XREADGROUP":
		for _, a := range args[1:] {
			switch {
			case strings.EqualFold(string(a), "BLOCK"):
				return lease
			case strings.EqualFold(string(a), "STREAMS"):
				return shared
			}
		}
	case "SELECT":
		if len(args) != 2 || string(args[1]) != "0" {
			return forLife
		}
	case "HELLO":
		for _, a := range args[1:] {
			if strings.EqualFold(string(a), "AUTH") {
				return forLife
			}
		}
	case "CLIENT":
		if len(args) < 2 {
			return shared // which says what is wrong
		}
		switch strings.ToUpper(string(args[1])) {
		case "SETINFO", "SETNAME", "GETNAME", "ID", "MAINT_NOTIFICATIONS":
			return local
		case "LIST", "KILL", "PAUSE", "UNPAUSE", "UNBLOCK", "HELP":
			return shared
		}
		return forLife
	}
	return c
}

// transaction notes what a command on a connection of the client's own does to its transaction.
func (c *client) transaction(name string) {
	switch name {
	case "MULTI":
		c.multi = true
	case "WATCH":
		c.watch = true
	case "UNWATCH":
		c.watch = c.multi // inside it is only queued
	case "EXEC", "DISCARD":
		c.multi, c.watch = false, false
	}
}
