package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/rabbit-backend/tcpio"
)

// Messages that a session sends to itself.
type (
	answer  struct{} // the pause that the request asked for is over
	goneYet struct{} // grace is over
)

// A session is one connection: requests without a body, one after the other. GET /?pause=300ms is answered after that
// time.
type session struct {
	grace    time.Duration
	request  *http.Request // being answered: nothing is read meanwhile
	draining bool          // the next answer is the last one
}

// Receive implements tcpio.Actor.
func (s *session) Receive(ev tcpio.Event) error {
	switch ev := ev.(type) {
	case tcpio.Readable:
		return s.serve(ev.Conn)
	case tcpio.Message:
		switch ev.Value.(type) {
		case answer:
			if last, err := s.answer(ev.Conn); last || err != nil {
				return err
			}
			return s.serve(ev.Conn)
		case goneYet:
			// An idle connection is only now closed: in a server under load a request is always on its way to it.
			if err := s.serve(ev.Conn); err != nil || s.request != nil {
				return err
			}
			return ev.Conn.Close()
		}
	case tcpio.Draining:
		s.draining = true
		ev.Conn.After(s.grace, goneYet{})
	}
	return nil
}

// serve answers the requests that have arrived.
func (s *session) serve(c *tcpio.Conn) error {
	if s.request != nil {
		return nil // answer comes back here
	}
	for head, err := range c.Frames(splitHead) {
		if err == io.EOF {
			return c.Close()
		} else if err != nil {
			return err
		}
		req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(head)))
		if err != nil || req.Method != http.MethodGet || req.ContentLength != 0 {
			_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
			return c.Close()
		}
		s.request = req
		if pause, err := time.ParseDuration(req.FormValue("pause")); err == nil && pause > 0 {
			c.After(pause, answer{})
			return nil
		}
		if last, err := s.answer(c); last || err != nil {
			return err
		}
	}
	return nil
}

// answer ends the request. While the server ends, it says that it is the last answer of this connection.
func (s *session) answer(c *tcpio.Conn) (last bool, err error) {
	last = s.request.Close || s.draining
	s.request = nil
	body := fmt.Sprintf("process %d version %s\n", os.Getpid(), version)
	header := ""
	if last {
		header = "Connection: close\r\n"
	}
	_, err = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n%s\r\n%s", len(body), header, body)
	if err != nil || !last {
		return last, err
	}
	return true, c.Close()
}

// splitHead finds a request's head, with the empty line behind it.
func splitHead(data []byte, atEOF bool) (advance int, token []byte, err error) {
	if i := bytes.Index(data, []byte("\r\n\r\n")); i >= 0 {
		return i + 4, data[:i+4], nil
	}
	if atEOF && len(data) > 0 {
		return 0, nil, io.ErrUnexpectedEOF
	}
	return 0, nil, nil
}
