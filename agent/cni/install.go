package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// first sorts before what others usually call theirs ("00-", "05-", "10-").
const first = "0-tombolo.conflist"

// Installer keeps the plugin's program and its network configuration where the
// container runtime looks for them. A node becomes Ready in Kubernetes when there is
// a configuration: so it comes when pods can be connected, and stays when the agent
// stops.
type Installer struct {
	BinDir, ConfDir string
	ConfName        string // of the configuration file; runtimes take the first by name
	Program         string // file that is copied to BinDir
	Own             Own
	// Other names the configuration that is chained to (Own.Chained): its file or
	// its network. "" = the first that is not ours.
	Other string
	// Ready says why pods cannot be connected yet; nil = they can.
	Ready func(context.Context) error
	Log   *slog.Logger

	installed copied // known to Ensure alone

	mu   sync.Mutex // never held while something is waited for: the status asks
	last outcome
}

// outcome is what the last Ensure came to.
type outcome struct {
	problem     error
	waiting     error  // what Ready said: there is no configuration yet
	rival       string // what the runtime takes instead of ours
	masquerades string // what hides pods' addresses, where ours is chained
}

// copied remembers what both programs looked like when they were equal, so that they
// are not read again and again.
type copied struct{ from, to fs.FileInfo }

// Ensure puts in place what is missing or differs. It reports whether the
// configuration is there. One call at a time.
func (i *Installer) Ensure(ctx context.Context) (there bool, err error) {
	var now outcome
	there, now.waiting, now.problem = i.ensure(ctx)
	if there {
		now.rival, now.masquerades = i.rival(), i.masquerades()
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.last = now
	return there, now.problem
}

func (i *Installer) ensure(ctx context.Context) (there bool, waiting, err error) {
	if err := i.ensureProgram(); err != nil {
		return false, nil, fmt.Errorf("install the plugin's program: %w", err)
	}
	if err := os.MkdirAll(i.ConfDir, 0o755); err != nil {
		return false, nil, err
	}
	name, want, err := i.wanted()
	if err != nil {
		return false, nil, err
	}
	path := filepath.Join(i.ConfDir, name)
	have, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if waiting := i.Ready(ctx); waiting != nil {
			return false, waiting, nil
		}
	case err != nil:
		return false, nil, err
	}
	if !bytes.Equal(have, want) {
		if err := Write(path, want, 0o644); err != nil {
			return false, nil, fmt.Errorf("write the network configuration: %w", err)
		}
		i.Log.Info("network configuration written: new pods come to Tombolo from now on", "file", path, "chained", i.Own.Chained)
	}
	return true, nil, i.removeOthers(name)
}

// wanted is the configuration and the name of its file.
func (i *Installer) wanted() (name string, data []byte, err error) {
	if !i.Own.Chained {
		return i.ConfName, Conflist(i.Own), nil
	}
	other, text, err := i.findOther()
	if err != nil {
		return "", nil, err
	}
	if data, err = Chain(text, i.Own); err != nil {
		return "", nil, fmt.Errorf("chain to %s: %w", other, err)
	}
	if name = i.ConfName; other <= name {
		name = first
	}
	return name, data, nil
}

// findOther is the configuration that is chained to.
func (i *Installer) findOther() (name string, text []byte, err error) {
	names, err := i.configurations()
	if err != nil {
		return "", nil, err
	}
	var bad error
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(i.ConfDir, name))
		if err != nil || isOurs(text) {
			continue
		}
		if i.Other != "" && name != i.Other && networkName(text) != i.Other {
			continue
		}
		if _, _, err := parseList(text); err != nil {
			bad = errors.Join(bad, fmt.Errorf("%s: %w", name, err)) // half a file, or none of CNI's
			continue
		}
		return name, text, nil
	}
	if i.Other != "" {
		return "", nil, errors.Join(fmt.Errorf("no configuration %s of another CNI plugin in %s to chain to", i.Other, i.ConfDir), bad)
	}
	return "", nil, errors.Join(fmt.Errorf("no configuration of another CNI plugin in %s to chain to", i.ConfDir), bad)
}

// masquerades names the plugin among those that are chained to that hides pods' addresses.
func (i *Installer) masquerades() string {
	if !i.Own.Chained {
		return ""
	}
	name, text, err := i.findOther()
	if err != nil {
		return "" // a problem of its own
	}
	_, plugins, _ := parseList(text)
	for _, p := range plugins {
		var conf struct {
			IPMasq bool `json:"ipMasq"`
		}
		if json.Unmarshal(p, &conf) == nil && conf.IPMasq {
			return "plugin " + pluginType(p) + " in " + name
		}
	}
	return ""
}

// configurations are the names of the files that runtimes read, in their order.
func (i *Installer) configurations() ([]string, error) {
	list, err := os.ReadDir(i.ConfDir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range list {
		if ext := filepath.Ext(e.Name()); !e.IsDir() && slices.Contains([]string{".conf", ".conflist", ".json"}, ext) {
			out = append(out, e.Name())
		}
	}
	slices.Sort(out)
	return out, nil
}

// rival is a configuration that the runtime takes instead of ours; "" = none.
func (i *Installer) rival() string {
	names, err := i.configurations()
	if err != nil || len(names) == 0 {
		return ""
	}
	if text, err := os.ReadFile(filepath.Join(i.ConfDir, names[0])); err != nil || isOurs(text) {
		return ""
	}
	return names[0]
}

// removeOthers removes what this program wrote under another name.
func (i *Installer) removeOthers(but string) error {
	var errs []error
	for _, name := range []string{i.ConfName, first} {
		if name != but {
			errs = append(errs, i.removeConf(name))
		}
	}
	return errors.Join(errs...)
}

func (i *Installer) removeConf(name string) error {
	path := filepath.Join(i.ConfDir, name)
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && !isOurs(text) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Remove(path)
}

// Remove takes the configuration away, then the program. What is not ours stays.
func (i *Installer) Remove() error {
	if err := i.removeOthers(""); err != nil {
		return fmt.Errorf("remove the network configuration: %w", err)
	}
	if err := os.Remove(filepath.Join(i.BinDir, Plugin)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the plugin's program: %w", err)
	}
	return nil
}

// ensureProgram copies the program unless the same is there.
func (i *Installer) ensureProgram() error {
	from, err := os.Stat(i.Program)
	if err != nil {
		return fmt.Errorf("%w; name it by --cni-plugin", err)
	}
	path := filepath.Join(i.BinDir, Plugin)
	to, err := os.Stat(path)
	if err == nil && to.Mode().Perm() == 0o755 {
		if same(from, i.installed.from) && same(to, i.installed.to) {
			return nil
		}
		if equal, err := equalFiles(i.Program, path); err == nil && equal {
			i.installed = copied{from, to}
			return nil
		}
	}
	if err := os.MkdirAll(i.BinDir, 0o755); err != nil {
		return err
	}
	src, err := os.Open(i.Program)
	if err != nil {
		return err
	}
	defer src.Close()
	err = WriteWith(path, 0o755, func(f *os.File) error {
		_, err := io.Copy(f, src)
		return err
	})
	if err != nil {
		return err
	}
	if to, err = os.Stat(path); err == nil {
		i.installed = copied{from, to}
	}
	i.Log.Info("CNI plugin installed", "program", path)
	return nil
}

func same(a, b fs.FileInfo) bool {
	return a != nil && b != nil && os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// equalFiles compares two files, a piece at a time.
func equalFiles(a, b string) (bool, error) {
	fa, err := os.Open(a)
	if err != nil {
		return false, err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return false, err
	}
	defer fb.Close()
	pa, pb := make([]byte, 1<<16), make([]byte, 1<<16)
	for {
		na, erra := io.ReadFull(fa, pa)
		nb, errb := io.ReadFull(fb, pb)
		if na != nb || !bytes.Equal(pa[:na], pb[:nb]) {
			return false, nil
		}
		if erra != nil || errb != nil {
			done := func(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }
			if done(erra) && done(errb) {
				return true, nil
			}
			return false, errors.Join(erra, errb)
		}
	}
}

// Problems are what keeps the runtime from calling the plugin.
func (i *Installer) Problems() (out []clustermesh.Problem) {
	last := i.outcome()
	if last.problem != nil {
		out = append(out, clustermesh.Problem{What: "the CNI plugin is not installed, or not as it should be", Why: last.problem.Error(),
			Fix: "check --cni-bin-dir, --cni-conf-dir and --cni-mode; it is tried again by itself"})
	}
	if last.rival != "" {
		out = append(out, clustermesh.Problem{What: "the container runtime uses another CNI configuration: new pods are not Tombolo's",
			Why: fmt.Sprintf("in %s %s comes before Tombolo's, and runtimes take the first", i.ConfDir, last.rival),
			Fix: "remove it with the CNI plugin that it belongs to, or give --cni-conf-name a name that comes first; or use --cni-mode=chained to keep that plugin"})
	}
	if last.masquerades != "" {
		out = append(out, clustermesh.Problem{What: "the other CNI plugin masquerades pods: on other nodes policy takes them for their node",
			Why: last.masquerades + " has ipMasq, which hides a pod's address from all but its own node's range",
			Fix: "set ipMasq to false there, and masquerade only what leaves the cluster and the mesh (ip-masq-agent's nonMasqueradeCIDRs, or a rule of your own); pods from before keep theirs until they are made anew"})
	}
	return out
}

// State is a line of the status.
func (i *Installer) State() string {
	last := i.outcome()
	switch {
	case last.problem != nil:
		return "not installed: " + last.problem.Error()
	case last.waiting != nil:
		return "no configuration yet, as pods cannot be connected yet: " + last.waiting.Error()
	case i.Own.Chained:
		return "installed, chained"
	}
	return "installed"
}

func (i *Installer) outcome() outcome {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.last
}
