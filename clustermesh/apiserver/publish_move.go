package apiserver

import (
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// moveTime is how much longer a record is found in the scope it leaves, after it
// was written to the one it goes to. Readers of both scopes hear of them by two
// watches, so even one commit could look to them as if it were in neither.
const moveTime = time.Second

// twin is the key of the same record in the other scope; "" for kinds that do
// not move.
func twin(text string) string {
	key, err := clustermesh.ParseKey(text)
	if err != nil || key.Kind != clustermesh.KindService && key.Kind != clustermesh.KindEndpointSlice {
		return ""
	}
	switch key.Scope {
	case clustermesh.ScopeExport:
		key.Scope = clustermesh.ScopeLocal
	case clustermesh.ScopeLocal:
		key.Scope = clustermesh.ScopeExport
	default:
		return ""
	}
	return key.String()
}

// moves are the keys that a record has left and that are still there.
type moves struct {
	due   map[string]time.Time
	timer *time.Timer
}

func newMoves() *moves {
	m := &moves{due: make(map[string]time.Time), timer: time.NewTimer(time.Hour)}
	m.timer.Stop()
	return m
}

// leave notes that key is to go in a while, if it was not noted before.
func (m *moves) leave(key string) {
	if _, noted := m.due[key]; noted {
		return
	}
	m.due[key] = time.Now().Add(moveTime)
	if len(m.due) == 1 {
		m.timer.Reset(moveTime)
	}
}

// over returns the keys whose time has come.
func (m *moves) over(now time.Time) []string {
	var keys []string
	next := time.Duration(0)
	for key, due := range m.due {
		if left := due.Sub(now); left > 0 {
			next = max(next, left) // all that are left go together: the last one's time does for them
			continue
		}
		keys = append(keys, key)
		delete(m.due, key)
	}
	if next > 0 {
		m.timer.Reset(next)
	}
	return keys
}

// moved says whether key is given up for its twin.
func (c *core) moved(key string) bool {
	other := twin(key)
	if other == "" {
		return false
	}
	_, there := c.d.owner[other]
	return there
}

// leftToo deletes what is left of a record that goes where it was before it moved:
// it is nowhere any more.
func (c *core) leftToo(key string) {
	other := twin(key)
	if _, left := c.moves.due[other]; left {
		delete(c.moves.due, other)
		c.pub.Delete(other)
	}
}

// keepTwin has a complete list go on wanting what the store holds under key's
// twin, for a while, if key is to take its place.
func (c *core) keepTwin(key string) {
	other := twin(key)
	if other == "" {
		return
	}
	if _, wanted := c.d.owner[other]; wanted {
		return
	}
	if value := c.present(other); value != nil {
		c.moves.leave(other)
		c.pub.Set(other, value)
	}
}

// finishMoves deletes what records have left, unless they came back.
func (c *core) finishMoves() {
	for _, key := range c.moves.over(time.Now()) {
		if _, back := c.d.owner[key]; !back && c.pub != nil {
			c.pub.Delete(key)
		}
	}
}
