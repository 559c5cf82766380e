package cluster

import (
	"encoding/binary"
	"fmt"
)

// The messages of a cluster. The first byte is the kind, in which the upper half is the version;
// numbers are varints, strings have their length in front.
//
//	beat    node number every(ms) flags                  to all
//	sync    node shard token count place…                to a node: send me your part of these
//	data    node run seq data | payload                  to a topic
//	change  node run seq data | count (num op record)…   to a topic: members have come and gone
//	tail    node run seq data                            to a topic: the last number was this
//	part    node run seq data | token place piece last (num record)…   to a shard of a node
//	none    node run 0 0 | token place                   likewise: I have nothing of this
//	post    node                     | payload           to a key, with a reply
//	ask     node patience(ms)        | payload           likewise
//	answer  outcome                  | payload           to a reply
//	probe                                                to where a post or an ask went: is anybody there?
//	record  node claim                                   who has the key of a session; into a stream
//	evict   fence claim token                            to a node: give up a session
//	lease   state lease(ms)                              a node may have sessions; into a stream
//	last    seq                                          to a recorded topic: its last record is this
type kind byte

const version = 0x10

const (
	kindBeat kind = version + iota
	kindSync
	kindData
	kindChange
	kindTail
	kindPart
	kindNone
	kindPost
	kindAsk
	kindAnswer
	kindProbe
	kindRecord
	kindEvict
	kindLease
	kindLast
)

// idLen is the length of a node's id in bytes.
const idLen = 22

// A malformed is what is wrong with a message.
type malformed struct{ what string }

func (e *malformed) Error() string { return "cluster: malformed message: " + e.what }

// A reader takes a message apart. Behind its end, or a value that cannot be, everything is zero and
// bad is set.
type reader struct {
	p   []byte
	bad bool
}

func (r *reader) byte() byte {
	if len(r.p) == 0 {
		r.bad = true
		return 0
	}
	b := r.p[0]
	r.p = r.p[1:]
	return b
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.p)
	if n <= 0 {
		r.bad, r.p = true, nil
		return 0
	}
	r.p = r.p[n:]
	return v
}

// take returns the next n bytes, which are part of the message.
func (r *reader) take(n uint64) []byte {
	if n > uint64(len(r.p)) {
		r.bad, r.p = true, nil
		return nil
	}
	p := r.p[:n:n]
	r.p = r.p[n:]
	return p
}

func (r *reader) bytes() []byte { return r.take(r.uint()) }

// kind returns the kind of p and a reader of the rest.
func kindOf(p []byte) (kind, reader) {
	if len(p) == 0 {
		return 0, reader{bad: true}
	}
	return kind(p[0]), reader{p: p[1:]}
}

func appendBytes[T string | []byte](dst []byte, p T) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(p))), p...)
}

// A beat is a heartbeat. Numbers grow by one; a node that may have lost something leaves one out.
type beat struct {
	node   string
	number uint64
	every  uint64 // milliseconds
	flags  byte
}

const (
	flagHello   = 1 << iota // a newcomer wants to hear the others at once
	flagLeaving             // its members are no longer there
	flagBye                 // it is the last one
)

func (b beat) append(dst []byte) []byte {
	dst = append(append(dst, byte(kindBeat)), b.node...)
	dst = binary.AppendUvarint(dst, b.number)
	dst = binary.AppendUvarint(dst, b.every)
	return append(dst, b.flags)
}

func readBeat(r reader) (b beat, err error) {
	b.node = string(r.take(idLen))
	b.number, b.every, b.flags = r.uint(), r.uint(), r.byte()
	if r.bad || len(r.p) > 0 || !validID(b.node) || b.number == 0 || b.every == 0 || b.every > uint64(maxBeat.Milliseconds()) {
		return beat{}, &malformed{"heartbeat"}
	}
	return b, nil
}

// A syncRequest asks for the parts of topics; the answers go to the asker's shard.
type syncRequest struct {
	node   string
	shard  uint64
	token  uint64
	places []string
}

func (q syncRequest) append(dst []byte) []byte {
	dst = append(append(dst, byte(kindSync)), q.node...)
	dst = binary.AppendUvarint(dst, q.shard)
	dst = binary.AppendUvarint(dst, q.token)
	dst = binary.AppendUvarint(dst, uint64(len(q.places)))
	for _, p := range q.places {
		dst = appendBytes(dst, p)
	}
	return dst
}

func readSync(r reader) (q syncRequest, err error) {
	q.node = string(r.take(idLen))
	q.shard, q.token = r.uint(), r.uint()
	n := r.uint()
	for ; n > 0 && !r.bad; n-- {
		q.places = append(q.places, string(r.bytes()))
	}
	if r.bad || len(r.p) > 0 || q.shard >= maxShards || !validID(q.node) {
		return syncRequest{}, &malformed{"request for parts"}
	}
	return q, nil
}

// validID reports whether id can be a node's: it becomes part of a subject.
func validID(id string) bool {
	for i := range len(id) {
		if !plain(id[i]) {
			return false
		}
	}
	return len(id) == idLen
}

// A stamp is the number of a message: of which node, in which of its runs of numbers for the topic,
// and the how manyth there, from 1; data says how many of these were published, the others being
// changes of members.
type stamp struct {
	node []byte // part of the message
	mark
}

// A mark is a stamp without the node.
type mark struct{ run, seq, data uint64 }

func appendStamp(dst []byte, k kind, node string, run, seq, data uint64) []byte {
	dst = append(append(dst, byte(k)), node...)
	dst = binary.AppendUvarint(dst, run)
	dst = binary.AppendUvarint(dst, seq)
	return binary.AppendUvarint(dst, data)
}

func (r *reader) stamp() stamp { return stamp{r.take(idLen), mark{r.uint(), r.uint(), r.uint()}} }

// A change is that a member has come, or is another than before, or has gone.
type change struct {
	num    uint64 // of the member, in its node
	joined bool
	record string
}

func appendChanges(dst []byte, changes []change) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(changes)))
	for _, c := range changes {
		dst = binary.AppendUvarint(dst, c.num)
		if c.joined {
			dst = appendBytes(append(dst, 1), c.record)
		} else {
			dst = append(dst, 0)
		}
	}
	return dst
}

func readChanges(r reader) (changes []change, err error) {
	n := r.uint()
	for ; n > 0 && !r.bad; n-- {
		c := change{num: r.uint()}
		switch r.byte() {
		case 0:
		case 1:
			c.joined, c.record = true, string(r.bytes())
			r.bad = r.bad || !validRecord(c.record)
		default:
			r.bad = true
		}
		changes = append(changes, c)
	}
	if r.bad || len(r.p) > 0 {
		return nil, &malformed{"change of presence"}
	}
	return changes, nil
}

// A piece is a piece of a node's part of a topic: its members as of a number.
type piece struct {
	token   uint64
	place   string
	index   uint64
	last    bool
	members []change // all joined
}

func (p piece) append(dst []byte) []byte {
	dst = p.appendHead(dst)
	for _, m := range p.members {
		dst = appendBytes(binary.AppendUvarint(dst, m.num), m.record)
	}
	return dst
}

func (p piece) appendHead(dst []byte) []byte {
	dst = appendBytes(binary.AppendUvarint(dst, p.token), p.place)
	dst = binary.AppendUvarint(dst, p.index)
	if p.last {
		return append(dst, 1)
	}
	return append(dst, 0)
}

func readPiece(r reader) (p piece, err error) {
	p.token, p.place, p.index = r.uint(), string(r.bytes()), r.uint()
	last := r.byte()
	p.last = last == 1
	r.bad = r.bad || last > 1
	for len(r.p) > 0 && !r.bad {
		m := change{num: r.uint(), joined: true, record: string(r.bytes())}
		r.bad = r.bad || !validRecord(m.record)
		p.members = append(p.members, m)
	}
	if r.bad {
		return piece{}, &malformed{"part of a topic"}
	}
	return p, nil
}

// A record is what others see of a member, packed: the length of the ID, the ID, the info.
func packMember(who *Member) (record string, err error) {
	if len(who.ID) > MaxID {
		return "", fmt.Errorf("cluster: Join: Member.ID: %w: it has %d bytes, %d are the limit", ErrTooLong, len(who.ID), MaxID)
	}
	if len(who.Info) > MaxInfo {
		return "", fmt.Errorf("cluster: Join: Member.Info: %w: it has %d bytes, %d are the limit", ErrTooLong, len(who.Info), MaxInfo)
	}
	p := make([]byte, 0, 2+len(who.ID)+len(who.Info))
	return string(append(appendBytes(p, who.ID), who.Info...)), nil
}

func validRecord(record string) bool {
	r := reader{p: []byte(record)}
	id := r.bytes()
	return !r.bad && len(id) <= MaxID && len(r.p) <= MaxInfo
}

func unpackMember(node, record string) Member {
	n, size := binary.Uvarint([]byte(record[:min(len(record), binary.MaxVarintLen64)]))
	record = record[size:]
	m := Member{ID: record[:n], Node: node}
	if int(n) < len(record) {
		m.Info = []byte(record[n:])
	}
	return m
}

// Outcomes of a post or an ask.
const (
	outcomeTaken = iota // it is in a mailbox
	outcomeFull         // the mailbox refused it
	outcomeNobody
	outcomeReply // the payload is the handler's answer
	outcomeNoReply
	outcomeIdle // to a probe: no answer to the request is to be expected here
	outcomeEnd
)

func appendAnswer(dst []byte, outcome byte, p []byte) []byte {
	return append(append(dst, byte(kindAnswer), outcome), p...)
}

func readAnswer(p []byte) (outcome byte, payload []byte, err error) {
	k, r := kindOf(p)
	outcome = r.byte()
	if k != kindAnswer || r.bad || outcome >= outcomeEnd {
		return 0, nil, &malformed{"answer"}
	}
	return outcome, r.p, nil
}
