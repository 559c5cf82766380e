package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/rabbit-backend/tcpio/examples/internal/chatline"
)

func TestEscapesAndBadUTF8AreCleanedOnTheWay(t *testing.T) {
	addr, _, _ := startServer(t, config{history: 2})
	ann := enter(t, addr, "ann", "go")
	ann.send("\x1b[2Jboo \xff", "\u202egnp.exe\r", "\xff\xfb\x01/quit")
	want := []string{"[go] ann: \ufffd[2Jboo \ufffd", "[go] ann: \ufffdgnp.exe", "[go] ann: \ufffd\ufffd\ufffd/quit"}
	ann.want(want...)
	bob := dial(t, addr)
	bob.send("/nick bob", "/join go")
	bob.want("* you are bob")
	bob.want(want[1:]...)
}

func TestALongLineIsToldAndThrownAway(t *testing.T) {
	addr, _, _ := startServer(t, config{})
	ann := enter(t, addr, "ann", "go")
	told := fmt.Sprintf("* that line is longer than %d bytes and was thrown away", chatline.MaxLine)
	for _, n := range []int{chatline.MaxLine + 1, 64 << 10, 1 << 20} {
		ann.send(strings.Repeat("x", n), "still here")
		ann.want(told, "[go] ann: still here")
	}
	just := strings.Repeat("x", chatline.MaxLine)
	ann.send(just+"\r", just)
	ann.want("[go] ann: "+just, "[go] ann: "+just)
}

func TestHalfALineThenTheEndIsALine(t *testing.T) {
	addr, _, _ := startServer(t, config{})
	ann := enter(t, addr, "ann", "go")
	bob := enter(t, addr, "bob", "go")
	ann.want("[go] * bob joined")
	if _, err := bob.c.Write([]byte("half a l")); err != nil {
		t.Fatal(err)
	}
	if err := bob.c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	bob.want("[go] bob: half a l")
	bob.wantEnd()
	ann.want("[go] bob: half a l", "[go] * bob left")
}
