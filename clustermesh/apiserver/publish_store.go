package apiserver

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// storeMemory remembers, in the state directory, which store was published to
// and how far: so that a replaced, an emptied and a restored etcd are told from
// the one that was there before, also after a restart.
type storeMemory struct {
	path string
	log  *slog.Logger

	mu   sync.Mutex
	last storeNote
	kept storeNote // as on disk
}

type storeNote struct {
	StoreID  string `json:"storeID"` // hexadecimal
	Revision int64  `json:"revision"`
}

// openStoreMemory reads what is remembered. A file that cannot be read is as
// good as none.
func openStoreMemory(dir string, log *slog.Logger) *storeMemory {
	m := &storeMemory{path: filepath.Join(dir, "store.json"), log: log}
	text, err := os.ReadFile(m.path)
	if err == nil {
		err = json.Unmarshal(text, &m.last)
	}
	if err != nil && !os.IsNotExist(err) {
		log.Warn("which store was published to last is not known", "file", m.path, "err", err)
		m.last = storeNote{}
	}
	m.kept = m.last
	return m
}

func storeIDText(id uint64) string { return fmt.Sprintf("%016x", id) }

// judge says whether the store at this position is another than was published
// to last, so that a new incarnation is due, and what an operator should know.
func (m *storeMemory) judge(at kvstore.Position, marked bool) (fresh bool, p *Problem) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.last.StoreID == "" {
		return false, nil
	}
	id := storeIDText(at.StoreID)
	again := "it was published to again from the source, as a new incarnation; peers keep what they have until that is complete"
	switch {
	case !marked:
		return true, &Problem{
			Object: "store", What: "the etcd came back empty", Since: time.Now(),
			Why: fmt.Sprintf("store %s at revision %d holds no publication of this cluster; store %s was published to up to revision %d", id, at.Revision, m.last.StoreID, m.last.Revision),
			Fix: again + ". Check with tombolo mesh list that every cluster is still joined, and with tombolo status that every node is registered",
		}
	case id != m.last.StoreID:
		return true, &Problem{
			Object: "store", What: "the etcd is a different one than before", Since: time.Now(),
			Why: fmt.Sprintf("its ID is %s, before it was %s", id, m.last.StoreID),
			Fix: again + ". If it is not the one you meant, correct --etcd-endpoints",
		}
	case at.Revision < m.last.Revision:
		return true, &Problem{
			Object: "store", What: "the etcd was restored from a backup", Since: time.Now(),
			Why: fmt.Sprintf("it is at revision %d, before it was at %d", at.Revision, m.last.Revision),
			Fix: again + ". Clusters that left since the backup was made are joined again: check with tombolo mesh list and remove them",
		}
	}
	return false, nil
}

// seen fills in what another replica has published to, when this one never has:
// it may have to judge the store next.
func (m *storeMemory) seen(at kvstore.Position) {
	m.mu.Lock()
	if m.last.StoreID == "" && at.StoreID != 0 {
		m.last.StoreID = storeIDText(at.StoreID)
	}
	m.mu.Unlock()
	m.saw(at)
}

// is says whether the position is in the store that was published to, not before
// what was.
func (m *storeMemory) is(at kvstore.Position) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last.StoreID == storeIDText(at.StoreID) && at.Revision >= m.last.Revision
}

// older says whether the position is before what was published to in the same
// store: it was restored, and nobody has judged it yet.
func (m *storeMemory) older(at kvstore.Position) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last.StoreID == storeIDText(at.StoreID) && at.Revision < m.last.Revision
}

// accept remembers the store as the one that is published to.
func (m *storeMemory) accept(at kvstore.Position) {
	m.mu.Lock()
	m.last = storeNote{StoreID: storeIDText(at.StoreID), Revision: at.Revision}
	m.mu.Unlock()
	m.save()
}

// saw notes how far the store has come. It does not write: see save.
func (m *storeMemory) saw(at kvstore.Position) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.last.StoreID == storeIDText(at.StoreID) {
		m.last.Revision = max(m.last.Revision, at.Revision)
	}
}

// save writes what is remembered to disk, if it changed. An older revision on
// disk does no harm: it notices fewer backups.
func (m *storeMemory) save() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.last == m.kept {
		return
	}
	text, err := json.Marshal(m.last)
	if err == nil {
		err = certs.WriteFile(m.path, append(text, '\n'), 0o600)
	}
	if err != nil {
		m.log.Warn("which store was published to is not remembered", "err", err)
		return
	}
	m.kept = m.last
}
