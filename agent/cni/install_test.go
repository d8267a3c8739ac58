package cni

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
)

// node is a container runtime's directories, and an agent that can be ready.
type node struct {
	*Installer
	t     *testing.T
	ready error
}

func newNode(t *testing.T, chained bool) *node {
	dir := t.TempDir()
	n := &node{t: t}
	n.Installer = &Installer{
		BinDir: filepath.Join(dir, "bin"), ConfDir: filepath.Join(dir, "net.d"), ConfName: "05-tombolo.conflist", Program: filepath.Join(dir, "program"),
		Own: Own{Type: Plugin, Socket: "/run/x.sock", Deletions: "/var/x", Chained: chained}, Log: slog.New(slog.DiscardHandler),
		Ready: func(context.Context) error { return n.ready },
	}
	n.put(n.Program, "first version")
	if err := os.Mkdir(n.ConfDir, 0o755); err != nil {
		t.Fatal(err)
	}
	return n
}

func (n *node) put(path, text string) {
	n.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) conf(name, text string) { n.t.Helper(); n.put(filepath.Join(n.ConfDir, name), text) }

func (n *node) read(dir, name string) string {
	n.t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		n.t.Fatal(err)
	}
	return string(text)
}

func (n *node) ensure(there bool) {
	n.t.Helper()
	got, err := n.Ensure(n.t.Context())
	if err != nil || got != there {
		n.t.Fatalf("configuration there: %v %v, want %v", got, err, there)
	}
}

func (n *node) files() string {
	n.t.Helper()
	names, err := n.configurations()
	if err != nil {
		n.t.Fatal(err)
	}
	return strings.Join(names, " ")
}

// chosen is what a runtime takes: the first.
func (n *node) chosen() *libcni.NetworkConfigList {
	n.t.Helper()
	files, err := libcni.ConfFiles(n.ConfDir, []string{".conf", ".conflist", ".json"})
	if err != nil || len(files) == 0 {
		n.t.Fatal(files, err)
	}
	slices.Sort(files)
	list, err := libcni.ConfListFromFile(files[0])
	if err != nil {
		n.t.Fatal(err)
	}
	return list
}

func typesOf(l *libcni.NetworkConfigList) (out []string) {
	for _, p := range l.Plugins {
		out = append(out, p.Network.Type)
	}
	return out
}

// The program is there at once; the configuration comes when pods can be connected,
// and stays whatever happens then.
func TestInstall(t *testing.T) {
	n := newNode(t, false)
	n.ready = errors.New("the agent waits")
	n.ensure(false)
	if info, err := os.Stat(filepath.Join(n.BinDir, Plugin)); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("%v %v", info, err)
	}
	if n.files() != "" || !strings.Contains(n.State(), "the agent waits") {
		t.Errorf("files %q, state %s", n.files(), n.State())
	}
	n.ready = nil
	n.ensure(true)
	list := n.chosen()
	if list.Name != Network || list.CNIVersion != "1.1.0" || !slices.Equal(typesOf(list), []string{Plugin}) {
		t.Errorf("%+v", list)
	}
	n.ready = errors.New("not now")
	n.ensure(true)

	// Others change and delete, and the program has a new version.
	n.conf("05-tombolo.conflist", "{}")
	if err := os.Remove(filepath.Join(n.BinDir, Plugin)); err != nil {
		t.Fatal(err)
	}
	n.ensure(true)
	if n.read(n.BinDir, Plugin) != "first version" || n.chosen().Name != Network {
		t.Error("not put back")
	}
	n.put(n.Program, "second version")
	n.ensure(true)
	if n.read(n.BinDir, Plugin) != "second version" {
		t.Error("the new version was not installed")
	}
	n.put(filepath.Join(n.BinDir, Plugin), "of others")
	n.ensure(true)
	if n.read(n.BinDir, Plugin) != "second version" {
		t.Error("the program that others changed was not put back")
	}
	for _, dir := range []string{n.BinDir, n.ConfDir} {
		if list, _ := os.ReadDir(dir); len(list) != 1 {
			t.Errorf("left behind in %s: %v", dir, list)
		}
	}

	n.conf("10-other.conflist", `{"name":"other","plugins":[{"type":"bridge"}]}`)
	if err := n.Remove(); err != nil {
		t.Fatal(err)
	}
	if err := n.Remove(); err != nil {
		t.Errorf("removed twice: %v", err)
	}
	if list, _ := os.ReadDir(n.BinDir); len(list) != 0 || n.files() != "10-other.conflist" {
		t.Errorf("left %v, %s", list, n.files())
	}
}

// A configuration that the runtime takes before ours is a problem as long as it is
// there.
func TestRival(t *testing.T) {
	n := newNode(t, false)
	n.conf("10-behind.conflist", `{"name":"behind","plugins":[{"type":"bridge"}]}`)
	n.ensure(true)
	if p := n.Problems(); len(p) != 0 {
		t.Errorf("%+v", p)
	}
	n.conf("00-before.conf", `{"name":"before","type":"bridge"}`)
	n.ensure(true)
	if p := n.Problems(); len(p) != 1 || !strings.Contains(p[0].Why, "00-before.conf comes before") {
		t.Errorf("%+v", p)
	}
	if err := os.Remove(filepath.Join(n.ConfDir, "00-before.conf")); err != nil {
		t.Fatal(err)
	}
	n.ensure(true)
	if p := n.Problems(); len(p) != 0 {
		t.Errorf("%+v", p)
	}
	n.Program = filepath.Join(n.ConfDir, "none")
	if _, err := n.Ensure(t.Context()); err == nil || !strings.Contains(err.Error(), "--cni-plugin") {
		t.Errorf("%v", err)
	}
	if p := n.Problems(); len(p) != 1 || !strings.Contains(p[0].What, "not installed") {
		t.Errorf("%+v", p)
	}
}

// Chained, ours is the other's configuration with our plugin last, under a name that
// comes first; it follows the other's changes.
func TestChain(t *testing.T) {
	n := newNode(t, true)
	if _, err := n.Ensure(t.Context()); err == nil || !strings.Contains(err.Error(), "to chain to") {
		t.Errorf("nobody to chain to: %v", err)
	}
	n.conf("09-half.conflist", `{"name":"ha`)
	n.conf("10-ptp.conf", `{"cniVersion":"1.0.0","name":"pods","type":"ptp","mtu":1400,"ipam":{"type":"host-local","subnet":"10.9.0.0/24"}}`)
	n.conf("20-last.conflist", `{"cniVersion":"0.4.0","name":"last","disableCheck":true,"plugins":[{"type":"bridge","x":[1,2]},{"type":"portmap"}]}`)
	n.ensure(true)
	list := n.chosen()
	if list.Name != "pods" || list.CNIVersion != "1.0.0" || !slices.Equal(typesOf(list), []string{"ptp", Plugin}) || !strings.Contains(string(list.Plugins[0].Bytes), "10.9.0.0/24") {
		t.Errorf("%+v: %s", list, list.Bytes)
	}
	c, err := ParseConfig(list.Plugins[1].Bytes)
	if err != nil || !c.Chained || c.Socket != "/run/x.sock" || c.Deletions != "/var/x" {
		t.Errorf("%+v %v", c, err)
	}
	n.conf("10-ptp.conf", `{"cniVersion":"1.0.0","name":"pods","type":"ptp","mtu":1300}`)
	n.ensure(true)
	if !strings.Contains(string(n.chosen().Plugins[0].Bytes), "1300") {
		t.Error("the other's change was not followed")
	}
	n.conf("10-ptp.conf", `{"cniVersion":"1.0.0","name":"pods","type":"ptp","ipMasq":true}`)
	n.ensure(true)
	if p := n.Problems(); len(p) != 1 || !strings.Contains(p[0].Why, "plugin ptp in 10-ptp.conf has ipMasq") {
		t.Errorf("pods are masqueraded, and the problems are %v", p)
	}
	n.conf("10-ptp.conf", `{"cniVersion":"1.0.0","name":"pods","type":"ptp","ipMasq":false}`)
	n.ensure(true)
	if p := n.Problems(); len(p) != 0 {
		t.Errorf("pods are not masqueraded any more: %v", p)
	}
	// By name, of the network or of the file.
	for _, other := range []string{"last", "20-last.conflist"} {
		n.Other = other
		n.ensure(true)
		if list := n.chosen(); list.Name != "last" || !list.DisableCheck || !slices.Equal(typesOf(list), []string{"bridge", "portmap", Plugin}) {
			t.Errorf("%s: %+v", other, list)
		}
	}
	// While the other is away, ours stays as it is, and the problem is told.
	n.Other = "gone"
	if _, err := n.Ensure(t.Context()); err == nil || n.chosen().Name != "last" || len(n.Problems()) != 1 {
		t.Errorf("%v", err)
	}
	// One that comes before ours is passed by a name that comes before it, and back.
	n.Other = ""
	n.conf("00-first.conf", `{"cniVersion":"1.0.0","name":"first","type":"ptp"}`)
	n.ensure(true)
	if n.chosen().Name != "first" || !slices.Contains(typesOf(n.chosen()), Plugin) || strings.Contains(n.files(), "05-tombolo") || len(n.Problems()) != 0 {
		t.Errorf("%s: %+v %v", n.files(), n.chosen(), n.Problems())
	}
	if err := os.Remove(filepath.Join(n.ConfDir, "00-first.conf")); err != nil {
		t.Fatal(err)
	}
	n.ensure(true)
	if n.chosen().Name != "pods" || strings.Contains(n.files(), first) {
		t.Errorf("%s: %+v", n.files(), n.chosen())
	}
	if err := n.Remove(); err != nil || n.files() != "09-half.conflist 10-ptp.conf 20-last.conflist" {
		t.Errorf("%v, left %s", err, n.files())
	}
}

// Run puts back what was deleted, without being asked, and ends with its context.
func TestInstallRun(t *testing.T) {
	n := newNode(t, false)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	there := func() bool {
		_, err1 := os.Stat(filepath.Join(n.ConfDir, n.ConfName))
		_, err2 := os.Stat(filepath.Join(n.BinDir, Plugin))
		return err1 == nil && err2 == nil
	}
	wait := func() {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !there(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("not put in place")
			}
		}
	}
	wait()
	for _, path := range []string{filepath.Join(n.ConfDir, n.ConfName), filepath.Join(n.BinDir, Plugin)} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		wait()
	}
	cancel()
	if err := <-done; err != nil || !there() {
		t.Errorf("%v: what is installed must stay", err)
	}
}
