package tcpio

import "github.com/rabbit-backend/tcpio/internal/wait"

// waits is what calls that block on a connection wait at. The Conn's mu guards it. A nil one is
// that of a connection on which no call has blocked yet: connExt.waiting makes one.
type waits struct {
	canRead wait.Gate // goroutines blocked until there is something to read
	canSend wait.Gate // goroutines blocked until there is room to write
	gone    wait.Gate // goroutines blocked until the connection is gone

	readLimit, sendLimit wait.Deadline // deadlines of Read and Write
}

func (w *waits) openRead() bool { return w != nil && w.canRead.Open() }
func (w *waits) openSend() bool { return w != nil && w.canSend.Open() }
func (w *waits) openGone() bool { return w != nil && w.gone.Open() }
func (w *waits) readLate() bool { return w != nil && w.readLimit.Passed() }
func (w *waits) sendLate() bool { return w != nil && w.sendLimit.Passed() }

// end lets everybody through who waits for bytes or room.
func (w *waits) end() {
	if w != nil {
		w.readLimit.Stop()
		w.sendLimit.Stop()
		w.canRead.Open()
		w.canSend.Open()
	}
}
