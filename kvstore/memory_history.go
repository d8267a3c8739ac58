package kvstore

import "sort"

// revision is what one commit changed.
type revision struct {
	rev    int64
	events []Event
	before []KV // before[i] is what events[i] replaced; its Key is "" if there was nothing
}

func (r *revision) add(e Event, before KV) {
	r.events = append(r.events, e)
	r.before = append(r.before, before)
}

// history is the bounded past of a Memory. A watch holds a revision number and
// looks up what follows; it keeps no reference into the history, so a reader
// that stands still holds nothing back.
type history struct {
	revs  []revision // ascending; the live part begins at first
	first int
	count int   // events in the live part
	floor int64 // the oldest revision that can still be read
}

// add appends r and forgets the oldest revisions beyond limit events. The
// newest is always kept.
func (h *history) add(r revision, limit int) {
	h.revs = append(h.revs, r)
	h.count += len(r.events)
	for h.count > limit && h.first < len(h.revs)-1 {
		h.drop()
	}
	h.pack()
}

func (h *history) drop() {
	old := &h.revs[h.first]
	h.floor = old.rev
	h.count -= len(old.events)
	*old = revision{}
	h.first++
}

// pack moves the live part to the front once half of the slice is dead.
func (h *history) pack() {
	if h.first < 64 || h.first < len(h.revs)/2 {
		return
	}
	n := copy(h.revs, h.revs[h.first:])
	clear(h.revs[n:])
	h.revs, h.first = h.revs[:n], 0
}

// compact forgets everything up to and including rev.
func (h *history) compact(rev int64) {
	for h.first < len(h.revs) && h.revs[h.first].rev <= rev {
		h.drop()
	}
	h.floor = max(h.floor, rev)
	h.pack()
}

// reset forgets everything; rev is the present revision.
func (h *history) reset(rev int64) { *h = history{floor: rev} }

// after returns the revisions that follow rev. The slice is valid while the
// store's lock is held.
func (h *history) after(rev int64) []revision {
	live := h.revs[h.first:]
	i := sort.Search(len(live), func(i int) bool { return live[i].rev > rev })
	return live[i:]
}

// undo takes back, in edit, what the revisions in later changed.
func undo(edit *editor, later []revision) {
	for i := len(later) - 1; i >= 0; i-- {
		r := &later[i]
		for j := len(r.events) - 1; j >= 0; j-- {
			if before := r.before[j]; before.Key != "" {
				edit.put(before)
			} else if !r.events[j].Delete {
				edit.delete(r.events[j].KV.Key)
			}
		}
	}
}
