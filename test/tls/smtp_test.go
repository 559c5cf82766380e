//go:build linux

package tls_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/smtp"
	"strings"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

var splitSMTP = tcpio.LineSplitter{}.Split

// An smtpServer is the actor of one connection. It takes mail inside TLS alone, as servers do that
// ask for STARTTLS (RFC 3207).
type smtpServer struct {
	inData bool
	lines  []string
	mails  chan<- string
}

func (s *smtpServer) Receive(ev tcpio.Event) error {
	c := tcpio.ConnOf(ev)
	switch ev.(type) {
	case tcpio.Opened:
		fmt.Fprint(c, "220 mail.test ESMTP\r\n")
	case tcpio.Readable:
		for line, err := range c.Frames(splitSMTP) {
			if err != nil {
				return err
			}
			if err := s.line(c, string(line)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *smtpServer) line(c *tcpio.Conn, line string) error {
	command, _, _ := strings.Cut(line, " ")
	command, _, _ = strings.Cut(command, ":")
	secure := c.TLS() != nil
	switch {
	case s.inData && line == ".":
		s.inData = false
		s.mails <- strings.Join(s.lines, "\n")
		fmt.Fprint(c, "250 taken\r\n")
	case s.inData:
		s.lines = append(s.lines, line)
	case command == "EHLO" && !secure:
		fmt.Fprint(c, "250-mail.test\r\n250 STARTTLS\r\n")
	case command == "EHLO":
		fmt.Fprint(c, "250 mail.test\r\n")
	case command == "STARTTLS" && !secure:
		fmt.Fprint(c, "220 go ahead\r\n")
		return c.StartTLS(testnet.ServerTLS())
	case command == "QUIT":
		fmt.Fprint(c, "221 bye\r\n")
		return io.EOF
	case !secure:
		fmt.Fprint(c, "530 5.7.0 Must issue a STARTTLS command first\r\n")
	case command == "MAIL", command == "RCPT":
		fmt.Fprint(c, "250 well\r\n")
	case command == "DATA":
		s.inData = true
		fmt.Fprint(c, "354 end with a dot\r\n")
	default:
		fmt.Fprint(c, "500 what?\r\n")
	}
	return nil
}

// net/smtp upgrades a connection to a server on tcpio. In plain text that takes no mail.
func TestSMTPServerUpgradesToTLS(t *testing.T) {
	mails := make(chan string, 1)
	l := harness.Serve(t, tcpio.ListenerOptions{NewActor: func(*tcpio.Conn) tcpio.Actor { return &smtpServer{mails: mails} }})
	c, err := smtp.NewClient(testnet.Dial(t, l), "localhost")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Hello("client.test"); err != nil {
		t.Fatal(err)
	}
	if err := c.Mail("ann@client.test"); err == nil || !strings.HasPrefix(err.Error(), "530 ") {
		t.Errorf("MAIL in plain text: %v", err)
	}
	if ok, _ := c.Extension("STARTTLS"); !ok {
		t.Error("no STARTTLS is offered")
	}
	if err := c.StartTLS(testnet.ClientTLS()); err != nil {
		t.Fatal(err)
	}
	if ok, _ := c.Extension("STARTTLS"); ok {
		t.Error("STARTTLS is offered inside TLS")
	}
	if err := c.Mail("ann@client.test"); err != nil {
		t.Error(err)
	}
	if err := c.Rcpt("bob@mail.test"); err != nil {
		t.Error(err)
	}
	w, err := c.Data()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(w, "Subject: hello\r\n\r\nhow are you?\r\n")
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if mail := testnet.Receive(t, "the mail", mails); mail != "Subject: hello\n\nhow are you?" {
		t.Errorf("the server has %q", mail)
	}
	if err := c.Quit(); err != nil {
		t.Error(err)
	}
}

// smtpPeer is a server on crypto/tls for one client. It returns what that has said inside TLS.
func smtpPeer(peer net.Conn) (said []string, err error) {
	_ = peer.SetDeadline(time.Now().Add(testnet.Limit))
	defer func() { peer.Close() }()
	in := bufio.NewReader(peer)
	answer := func(want, reply string) error {
		line, err := in.ReadString('\n')
		if err == nil && line != want+"\r\n" {
			err = fmt.Errorf("the client says %q, want %q", line, want)
		}
		if err == nil {
			_, err = io.WriteString(peer, reply+"\r\n")
		}
		return err
	}
	if _, err := io.WriteString(peer, "220 mail.test ESMTP\r\n"); err != nil {
		return nil, err
	}
	if err := answer("EHLO client.test", "250-mail.test\r\n250 STARTTLS"); err != nil {
		return nil, err
	}
	if err := answer("STARTTLS", "220 go ahead"); err != nil {
		return nil, err
	}
	sealed := tls.Server(peer, testnet.ServerTLS())
	in.Reset(sealed)
	for peer = sealed; ; {
		line, err := in.ReadString('\n')
		if err != nil {
			return said, err
		}
		said = append(said, strings.TrimSuffix(line, "\r\n"))
		switch said[len(said)-1] {
		case "DATA":
			_, err = io.WriteString(peer, "354 end with a dot\r\n")
		case "Subject: hello", "", "how are you?":
		case "QUIT":
			if _, err = io.WriteString(peer, "221 bye\r\n"); err == nil {
				_, err = in.ReadByte() // the client ends first
			}
			if err == io.EOF {
				err = nil
			}
			return said, err
		default:
			_, err = io.WriteString(peer, "250 well\r\n")
		}
		if err != nil {
			return said, err
		}
	}
}

// A client on tcpio upgrades its connection to a server of others'. Every reply leads to the next
// command; what comes behind STARTTLS's is said inside TLS.
func TestSMTPClientUpgradesToTLS(t *testing.T) {
	addr, accepted := testnet.Upstream(t, "tcp", "127.0.0.1:0")
	l := plainClients(t, tcpio.ListenerOptions{})
	c, err := l.Dial(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	plain := []string{"EHLO client.test", "STARTTLS"}
	inside := []string{"EHLO client.test", "MAIL FROM:<ann@client.test>", "RCPT TO:<bob@mail.test>", "DATA",
		"Subject: hello\r\n\r\nhow are you?\r\n.", "QUIT"}
	next := func(commands *[]string) (command string) {
		command, *commands = (*commands)[0], (*commands)[1:]
		return command + "\r\n"
	}
	left, begun := inside, false
	ended := make(chan error, 1)
	if err := c.Attach(tcpio.ActorFunc(func(ev tcpio.Event) error {
		switch ev.(type) {
		case tcpio.Closed:
			ended <- c.Err()
		case tcpio.Readable:
			for line, err := range c.Frames(splitSMTP) {
				switch {
				case err != nil:
					return err
				case len(line) < 4 || line[0] != '2' && line[0] != '3':
					return fmt.Errorf("the server says %q", line)
				case line[3] == '-': // the reply goes on
				case len(plain) > 0:
					fmt.Fprint(c, next(&plain))
				case !begun:
					if err := c.StartTLSClient(testnet.ClientTLS()); err != nil {
						return err
					}
				case len(left) > 0:
					fmt.Fprint(c, next(&left))
				default:
					return io.EOF
				}
			}
			// Behind the loop: its last read may have answered the Readable of the handshake.
			if c.TLS() != nil && !begun {
				begun = true
				fmt.Fprint(c, next(&left))
			}
		}
		return nil
	})); err != nil {
		t.Fatal(err)
	}
	said, err := smtpPeer(testnet.Receive(t, "the client", accepted))
	if got, want := strings.Join(said, "\r\n"), strings.Join(inside, "\r\n"); err != nil || got != want {
		t.Errorf("the server has heard %q, %v", got, err)
	}
	if err := testnet.Receive(t, "the client's end", ended); err != nil {
		t.Error(err)
	}
}
