// Package request is what `tombolo` asks of `tombolo-install`, a program of its
// own because Helm's library is several times as large as all the rest of the
// command line. Users type `tombolo install` and need not know of it.
package request

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Program is the name of the one that answers. It lies beside `tombolo`, or in
// the PATH.
const Program = "tombolo-install"

// Request is one call. Its JSON is the program's only argument.
type Request struct {
	Verb    string // install, upgrade, uninstall, check
	Version string // of who asks: both are of one release

	Kubeconfigs []string
	Context     string
	Namespace   string

	Set       []string      // key=value of the chart
	Files     []string      // of values
	Wait      bool          // until all of it runs
	Timeout   time.Duration // of the waiting
	DryRun    bool
	KeepState bool // uninstall
	Force     bool // uninstall: also where nodes cannot be cleaned
	Pre       bool // check: before an installation
	JSON      bool
}

// Argument is the request as an argument.
func (r Request) Argument() (string, error) {
	text, err := json.Marshal(r)
	return string(text), err
}

// Parse reads the argument, and refuses one of another version: fields would be
// missed in silence.
func Parse(arg, version string) (Request, error) {
	var r Request
	if err := json.Unmarshal([]byte(arg), &r); err != nil {
		return r, fmt.Errorf("%s is started by tombolo: run 'tombolo install --help' instead", Program)
	}
	if r.Version != version {
		return r, fmt.Errorf("tombolo is of version %s and %s of %s: take both from one release", r.Version, Program, version)
	}
	return r, nil
}

// Find is the path of the program: beside the executable self, else in the PATH.
func Find(self string) (string, error) {
	if self != "" {
		path := filepath.Join(filepath.Dir(self), Program)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	path, err := exec.LookPath(Program)
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("there is no %s beside tombolo (%s) nor in the PATH: it carries Helm and the chart, and comes with every release; put it beside tombolo", Program, filepath.Dir(self))
	}
	return path, err
}
