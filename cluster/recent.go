package cluster

import (
	"cmp"
	"slices"
)

// recent are the records of a topic behind a certain one, as far as they were delivered, while
// connections resume: many do so at the same moment when a node has gone, and each record is got
// from the stream once for all of them.
type recent struct {
	// Guarded by the topic's mu.
	turn    chan struct{} // has a value while a connection asks the stream; nil while nobody resumes
	after   uint64        // the record before the first, 0 for the beginning
	records []Record
	size    int // bytes of their data
}

const (
	maxRecent      = 1024    // records
	maxRecentBytes = 4 << 20 // likewise, of their data
)

// begin has records kept behind the last one.
func (r *recent) begin(last uint64) {
	if r.turn == nil {
		*r = recent{turn: make(chan struct{}, 1), after: last}
	}
}

// restart forgets the records: some before last are missing.
func (r *recent) restart(last uint64) { r.after, r.records, r.size = last, nil, 0 }

// add adds a record that is delivered.
func (r *recent) add(rec Record) {
	if r.turn == nil {
		return
	}
	r.records = append(r.records, rec)
	r.size += len(rec.Data)
	if len(r.records) > maxRecent || r.size > maxRecentBytes {
		half := (len(r.records) + 1) / 2
		r.after = r.records[half-1].Pos.Seq
		r.records = slices.Clone(r.records[half:])
		r.size = sizeOf(r.records)
	}
}

// extend adds what the stream has behind a record, if that reaches as far as what there is, and if
// there is room.
func (r *recent) extend(after uint64, records []Record) {
	if r.turn == nil || after >= r.after || len(records) == 0 || records[len(records)-1].Pos.Seq < r.after {
		return
	}
	end, found := find(records, r.after)
	if found {
		end++
	}
	size := sizeOf(records[:end])
	if end+len(r.records) > maxRecent || size+r.size > maxRecentBytes {
		return
	}
	r.after, r.size = after, r.size+size
	r.records = slices.Concat(records[:end], r.records)
}

// behind returns the records behind one, and false if that is none of these.
func (r *recent) behind(seq uint64) (records []Record, ok bool) {
	if seq == r.after {
		return slices.Clone(r.records), true
	}
	i, found := find(r.records, seq)
	if !found {
		return nil, false
	}
	return slices.Clone(r.records[i+1:]), true
}

func find(records []Record, seq uint64) (i int, found bool) {
	return slices.BinarySearchFunc(records, seq, func(rec Record, seq uint64) int { return cmp.Compare(rec.Pos.Seq, seq) })
}

func sizeOf(records []Record) (size int) {
	for _, rec := range records {
		size += len(rec.Data)
	}
	return size
}
