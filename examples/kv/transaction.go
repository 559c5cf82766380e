package main

import "bytes"

// What the transaction of one connection may hold. Redis has no such limits.
const (
	maxQueue        = maxRequest // bytes of the queued requests in wire form
	maxTransaction  = 10_000     // queued requests
	maxWatched      = 64 << 10   // bytes of the watched keys, watchOverhead for each included
	watchOverhead   = 64
	errNested       = replyError("ERR MULTI calls can not be nested")
	errNoExec       = replyError("ERR EXEC without MULTI")
	errNoDiscard    = replyError("ERR DISCARD without MULTI")
	errAborted      = replyError("EXECABORT Transaction discarded because of previous errors.")
	errWatchInMulti = replyError("ERR WATCH inside MULTI is not allowed")
	errBigQueue     = replyError("ERR transaction would be too long")
	errManyWatched  = replyError("ERR too many watched keys")
)

// A transaction is what a connection has between MULTI and EXEC. Requests wait as they came: their
// length is their cost, and nothing points into a buffer that is used again.
type transaction struct {
	queue  []byte // whole requests
	n      int
	failed bool // a request was refused: EXEC runs none
}

// queue takes a request into the transaction.
func (s *server) queue(tx *transaction, request []byte) error {
	switch {
	case tx.failed: // It will not be run, and so it is not kept.
	case tx.n == maxTransaction || len(tx.queue)+len(request) > maxQueue:
		return errBigQueue
	default:
		tx.queue = append(tx.queue, request...)
		tx.n++
	}
	s.out = appendSimple(s.out, "QUEUED")
	return nil
}

// refuse makes the transaction one that EXEC does not run.
func (tx *transaction) refuse() { tx.queue, tx.failed = nil, true }

func cmdMulti(s *server, cl *client, _ [][]byte) error {
	if cl.tx != nil {
		return errNested
	}
	cl.tx = new(transaction)
	return s.ok()
}

func cmdDiscard(s *server, cl *client, _ [][]byte) error {
	if cl.tx == nil {
		return errNoDiscard
	}
	s.discard(cl)
	return s.ok()
}

// discard ends the transaction and what was watched for it.
func (s *server) discard(cl *client) {
	cl.tx = nil
	s.unwatch(cl)
}

func (s *server) unwatch(cl *client) {
	if cl.watch != nil {
		s.store.unwatch(cl.watch)
		cl.watch = nil
	}
}

// cmdExec runs the queue. Nothing runs beside it, and a request that fails does not stop those
// behind it.
//
// The reply is bounded as others are: the request with which it would be longer than maxReply, and
// from then on every request that only asks, gets an error in its place. What changes something has
// a short reply and is always run.
func cmdExec(s *server, cl *client, _ [][]byte) error {
	tx := cl.tx
	if tx == nil {
		return errNoExec
	}
	changed := cl.watch != nil && s.store.changed(cl.watch)
	s.discard(cl)
	switch {
	case tx.failed:
		return errAborted
	case changed:
		s.out = appendNullArray(s.out, cl.resp)
		return nil
	}
	s.out = appendArray(s.out, tx.n)
	start, full := len(s.out), false
	for rest := tx.queue; len(rest) > 0; {
		n, request, err := split(rest, true)
		if err != nil || n == 0 {
			return errAborted // Only whole requests are queued.
		}
		rest = rest[n:]
		args, _ := s.parser.parse(request)
		cmd, _ := s.find(args)
		s.executed++
		mark := len(s.out)
		if !full || !cmd.asks {
			s.call(cl, cmd, args)
		}
		if cmd.asks && (full || len(s.out)-start > maxReply) {
			full = true
			s.out = appendError(s.out[:mark], errBigReply.Error())
		}
	}
	return nil
}

func cmdWatch(s *server, cl *client, args [][]byte) error {
	if cl.tx != nil {
		return errWatchInMulti
	}
	if cl.watch == nil {
		cl.watch = new(watch)
	}
	size := cl.watch.size
	for _, key := range args[1:] {
		size += len(key) + watchOverhead
	}
	if size > maxWatched {
		return errManyWatched
	}
	for _, key := range args[1:] {
		s.store.watch(cl.watch, key)
	}
	return s.ok()
}

func cmdUnwatch(s *server, cl *client, _ [][]byte) error {
	s.unwatch(cl)
	return s.ok()
}

// isHTTP reports whether a command's name is one that a browser's request has and a Redis client's
// never. The name ends at a NUL, as it does for Redis.
func isHTTP(name []byte) bool {
	name, _, _ = bytes.Cut(name, []byte{0})
	return equalFold(name, "POST") || equalFold(name, "Host:")
}
