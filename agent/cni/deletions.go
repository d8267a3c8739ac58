package cni

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/tombolo-mesh/tombolo/agent"
)

// A deletion is a note of a DEL that the plugin has told the runtime is done while
// no agent could be reached. It is kept until an agent has carried it out: the
// kubelet goes on deleting pods, and no address is lost.
type deletion struct {
	Version int              `json:"version"`
	Pod     agent.PodRequest `json:"pod"`
}

const (
	deletionVersion = 1
	maxDeletion     = 64 << 10 // bytes
)

// deletionFile is one file for each sandbox and interface: DEL, repeated, writes
// the same.
func deletionFile(dir string, r agent.PodRequest) string {
	h := sha256.Sum256([]byte(r.ContainerID + "\n" + r.IfName))
	return filepath.Join(dir, hex.EncodeToString(h[:16])+".json")
}

// Defer notes a deletion; it is on disk when Defer returns.
func Defer(dir string, r agent.PodRequest) error {
	data, err := json.Marshal(deletion{deletionVersion, r})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return Write(deletionFile(dir, r), data, 0o600)
}

// Undefer takes a note back: the same sandbox is added again. What is not noted is
// no error.
func Undefer(dir string, r agent.PodRequest) error {
	if err := os.Remove(deletionFile(dir, r)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Deferred are the files of all notes.
func Deferred(dir string) ([]string, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		return nil, err
	}
	var out []string
	for _, e := range list {
		if strings.HasSuffix(e.Name(), ".json") {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out, nil
}

// ReadDeferred reads a note.
func ReadDeferred(path string) (agent.PodRequest, error) {
	info, err := os.Stat(path)
	if err != nil {
		return agent.PodRequest{}, err
	}
	if info.Size() > maxDeletion {
		return agent.PodRequest{}, fmt.Errorf("%d bytes are no note of a deletion", info.Size())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return agent.PodRequest{}, err
	}
	var d deletion
	if err := json.Unmarshal(data, &d); err != nil {
		return agent.PodRequest{}, err
	}
	if d.Version != deletionVersion || d.Pod.ContainerID == "" && d.Pod.UID == "" {
		return agent.PodRequest{}, fmt.Errorf("version %d, container %q: not a note that this agent writes", d.Version, d.Pod.ContainerID)
	}
	return d.Pod, nil
}
