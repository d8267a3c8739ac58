package bpf

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// helpers515 are the helpers of a 5.15 kernel that core objects call. Before one
// is added: is it in 5.15's bpf.h, and allowed for the program type there?
var helpers515 = map[asm.BuiltinFunc]string{
	asm.FnMapLookupElem:    "3.19",
	asm.FnMapUpdateElem:    "3.19",
	asm.FnMapDeleteElem:    "3.19",
	asm.FnGetPrandomU32:    "4.1",
	asm.FnSkbStoreBytes:    "4.1",
	asm.FnSkbLoadBytes:     "4.5",
	asm.FnSkbChangeHead:    "4.10",
	asm.FnCsumUpdate:       "4.6",
	asm.FnL4CsumReplace:    "4.1",
	asm.FnSkbPullData:      "4.9",
	asm.FnSkbChangeTail:    "4.9",
	asm.FnSkbAdjustRoom:    "4.13",
	asm.FnRingbufReserve:   "5.8",
	asm.FnRingbufSubmit:    "5.8",
	asm.FnSkcLookupTcp:     "5.2",
	asm.FnSkLookupUdp:      "4.20",
	asm.FnSkRelease:        "4.20",
	asm.FnRedirect:         "4.2",
	asm.FnRedirectNeigh:    "5.10",
	asm.FnKtimeGetCoarseNs: "5.11",
	asm.FnGetNetnsCookie:   "5.7; cgroup sock_addr",
	asm.FnGetSocketCookie:  "4.12; cgroup sock_addr and sock: 5.x",
	asm.FnRedirectPeer:     "5.10",
}

var coreObjects = map[string]func() (*ebpf.CollectionSpec, error){
	"rows": loadRows, "sock": loadSock, "tunnel": loadTunnel, "pod": loadPod, "host": loadHost,
}

func newerThan515(spec *ebpf.CollectionSpec) (newer []string) {
	for name, p := range spec.Programs {
		for _, ins := range p.Instructions {
			if ins.IsBuiltinCall() {
				if fn := asm.BuiltinFunc(ins.Constant); helpers515[fn] == "" {
					newer = append(newer, name+" calls "+fn.String())
				}
			}
			if ins.IsKfuncCall() {
				newer = append(newer, name+" calls a kfunc")
			}
		}
	}
	return newer
}

func TestCoreHelpers(t *testing.T) {
	for object, spec := range coreObjects {
		s, err := spec()
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range newerThan515(s) {
			t.Errorf("%s: %s, which 5.15 lacks: it belongs into an optional object", object, n)
		}
		for name, m := range s.Maps {
			if len(name) > 15 {
				t.Errorf("%s: map %s: names have at most 15 characters", object, name)
			}
			if m.Type > ebpf.RingBuf {
				t.Errorf("%s: map %s is a %s, which 5.15 lacks", object, name, m.Type)
			}
		}
	}
	// The check itself: the optional object must not pass it.
	s, err := loadSockRetval()
	if err != nil {
		t.Fatal(err)
	}
	if len(newerThan515(s)) == 0 {
		t.Error("bpf_set_retval (5.18) was not noticed")
	}
}

// Every object has the same maps: the loader hands one set to all.
func TestObjectsAgreeOnMaps(t *testing.T) {
	rows, err := loadRows()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for name := range rows.Maps {
		if !strings.HasPrefix(name, ".") { // what names the types that no map has
			n++
		}
	}
	if n != len(new(Maps).tables(Sizes{})) {
		t.Errorf("%d maps in C, %d in Maps", n, len(new(Maps).tables(Sizes{})))
	}
	for object, spec := range map[string]func() (*ebpf.CollectionSpec, error){
		"sock": loadSock, "sock_retval": loadSockRetval, "tunnel": loadTunnel, "pod": loadPod, "host": loadHost, "xdp": loadXdp, "pick": loadPick, "maglev": loadMaglev, "policy": loadPolicy,
	} {
		s, err := spec()
		if err != nil {
			t.Fatal(err)
		}
		for name, m := range s.Maps {
			if strings.HasPrefix(name, ".") {
				continue // constants
			}
			r := rows.Maps[name]
			if r == nil || r.Type != m.Type || r.KeySize != m.KeySize || r.ValueSize != m.ValueSize || r.Flags != m.Flags {
				t.Errorf("%s: map %s is not the one of rows.c", object, name)
			}
		}
	}
}

// Every reason of the C has a name here, and the other way round.
func TestReasonsNamed(t *testing.T) {
	spec, err := loadRows()
	if err != nil {
		t.Fatal(err)
	}
	var enum *btf.Enum
	if err := spec.Types.TypeByName("tmb_reason", &enum); err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, v := range enum.Values {
		if v.Name == "TMB_REASONS" {
			if int(v.Value) != len(reasons) {
				t.Errorf("%d reasons in C, %d named", v.Value, len(reasons))
			}
			continue
		}
		name := Reason(v.Value).String()
		if !regexp.MustCompile(`^[a-z][a-z0-9_]+$`).MatchString(name) || strings.HasPrefix(name, "reason_") || seen[name] {
			t.Errorf("%s has the name %q", v.Name, name)
		}
		if strings.HasPrefix(v.Name, "TMB_DROP_") != strings.HasPrefix(name, "drop_") {
			t.Errorf("%s has the name %q", v.Name, name)
		}
		seen[name] = true
	}
}

// The limits that Go and C both state.
func TestLimits(t *testing.T) {
	source, err := os.ReadFile("src/maps.h")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"#define TMB_MAX_TIERS 4\n", "#define TMB_MAX_GROUPS 20\n", "#define TMB_MAX_WALK 64 "} {
		if !bytes.Contains(source, []byte(want)) {
			t.Errorf("maps.h does not say %q", want)
		}
	}
	if MaxTiers != 4 || MaxGroups != 20 || MaxWalk != 64 {
		t.Error("rows.go says otherwise")
	}
}

// TestGenerated builds the objects again and compares them with those committed.
func TestGenerated(t *testing.T) {
	clang, err := exec.LookPath("clang-19")
	if err != nil {
		t.Skip("needs clang 19: rebuilds the objects")
	}
	version, err := exec.Command(clang, "--version").Output()
	if err != nil || !bytes.Contains(version, []byte("version 19.")) {
		t.Skipf("needs clang 19: %s is %s", clang, version)
	}
	// Another directory, so that a path that gets into an object shows.
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "src"), os.DirFS("src")); err != nil {
		t.Fatal(err)
	}
	directives, err := os.ReadFile("gen.go")
	if err != nil {
		t.Fatal(err)
	}
	// bpf2go is a tool of our module; the other directory is in none.
	tool, err := exec.Command("go", "tool", "-n", "bpf2go").Output()
	if err != nil {
		t.Fatalf("find bpf2go: %v", err)
	}
	var flags []string
	for line := range strings.Lines(string(directives)) {
		command, ok := strings.CutPrefix(line, "//go:generate ")
		if !ok {
			continue
		}
		words := splitWords(strings.ReplaceAll(command, "$PWD", dir))
		if words[0] == "-command" {
			flags = words[5:] // after -command compile go tool bpf2go
			continue
		}
		words = append(slices.Clone(flags), words[1:]...)
		cmd := exec.Command(strings.TrimSpace(string(tool)), words...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOPACKAGE=bpf", "GOFILE=gen.go")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(words, " "), err, out)
		}
	}
	committed, err := filepath.Glob("*_bpfel*")
	if err != nil || len(committed) == 0 {
		t.Fatal("no generated files")
	}
	for _, name := range committed {
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		} else if !bytes.Equal(got, want) {
			t.Errorf("%s is not what the sources give: run `go generate ./bpf`", name)
		}
	}
}

// splitWords splits as go generate does: at spaces, but for quoted words.
func splitWords(s string) (words []string) {
	for _, w := range regexp.MustCompile(`"[^"]*"|\S+`).FindAllString(s, -1) {
		words = append(words, strings.Trim(w, `"`))
	}
	return words
}
