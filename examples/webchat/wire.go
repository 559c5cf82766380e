package main

// The messages between a page and the server, each a JSON object in a text message. T says which:
//
//	from the client
//	hello   token, name, room, and of the room it had: epoch, last. Joins, resumes, renames, moves.
//	say     n, text: n rises with each line of the session
//	typing
//	rooms
//
//	from the server
//	welcome room, epoch, name, me, n, last, missed, here, count
//	lines   lines
//	here    here, count: who is there now; on many nodes this and not lines tells it
//	gap     missed, last, here, count: that many lines are no longer in the log
//	no      why, and n for a line that was refused, or field of the hello
//	ack     n: that line, and those before, were said before
//	typing  name
//	rooms   rooms
//
// A hello and a say that the server has taken show in welcome and lines; nothing else is answered.
// A message that is not one of these ends the connection with 1008.

// A request is a message from the client.
type request struct {
	T     string `json:"t"`
	Token string `json:"token,omitempty"` // secret of the session, chosen by the client
	Name  string `json:"name,omitempty"`
	Room  string `json:"room,omitempty"`
	Epoch string `json:"epoch,omitempty"`
	Last  uint64 `json:"last,omitempty"` // number of the last line that it has
	N     uint64 `json:"n,omitempty"`
	Text  string `json:"text,omitempty"`
}

// An answer is a message from the server.
type answer struct {
	T     string `json:"t"`
	Room  string `json:"room,omitempty"`
	Epoch string `json:"epoch,omitempty"`
	Name  string `json:"name,omitempty"`
	Me    string `json:"me,omitempty"` // public id of the session: the by of its lines
	N     uint64 `json:"n,omitempty"`  // the session's lines up to this one have been said
	Last  uint64 `json:"last,omitempty"`
	// Missed is how many lines are not there between what the client has and what follows; -1
	// says that the room is another one than the client knew.
	Missed int64      `json:"missed,omitempty"`
	Here   []string   `json:"here,omitempty"` // members as of last, at most maxHere of them
	Count  int        `json:"count,omitempty"`
	Lines  []line     `json:"lines,omitempty"`
	Why    string     `json:"why,omitempty"`
	Field  string     `json:"field,omitempty"`
	Rooms  []roomInfo `json:"rooms,omitempty"`
}

type roomInfo struct {
	Name  string `json:"name"`
	Users int    `json:"users"`
}

// What encloses the lines of a message.
var (
	linesHead = []byte(`{"t":"lines","lines":[`)
	linesTail = []byte(`]}`)
)

const (
	maxHere = 200 // names in a welcome
	maxList = 50  // rooms in a list

	closeMoved = 4001 // the session has another connection
)
