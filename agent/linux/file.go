package linux

import (
	"os"
	"path/filepath"

	"github.com/tombolo-mesh/tombolo/agent/cni"
)

// writeFile replaces path as a whole, mode 0600, as cni.Write does; its folder is
// made if it is not there.
func writeFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return cni.Write(path, data, 0o600)
}
