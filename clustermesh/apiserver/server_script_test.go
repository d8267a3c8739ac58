package apiserver

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// TestScripts runs test/script/apiserver: Kubernetes YAML in, store keys out.
//
//	start [CLUSTER ID [PREFIX...]]   start publishing manifests/ to the script's store
//	halt                             stop (that word is the harness's own: it ends a script); the store and the state directory stay
//	new-store                        from the next start on the store is another, empty one
//	expect FILE [PREFIX]             the store under PREFIX says, in the end, what FILE says
//	[!] problem REGEXP               a problem of that text is present, or none is, in the end
//	register-node NAME ADDR          what the agent of a node does
//	register-pod NODE NS/NAME UID READY [ADDR...]
//	remove-pod NODE NS/NAME UID
func TestScripts(t *testing.T) {
	dir, err := filepath.Abs("../../test/script/apiserver")
	if err != nil {
		t.Fatal(err)
	}
	scriptDir = dir
	testscript.Run(t, testscript.Params{
		Dir: dir,
		Setup: func(env *testscript.Env) error {
			env.Values["world"] = &scriptWorld{store: kvstore.NewMemory(kvstore.MemoryOptions{})}
			return os.MkdirAll(env.Cd+"/manifests", 0o755)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"start": scriptStart, "halt": scriptHalt, "new-store": scriptNewStore,
			"expect": scriptExpect, "problem": scriptProblem,
			"register-node": scriptRegisterNode, "register-pod": scriptRegisterPod, "remove-pod": scriptRemovePod,
		},
	})
}

var scriptDir string // absolute: scripts run elsewhere

type scriptWorld struct {
	store *kvstore.Memory
	run   *publishing
}

func world(ts *testscript.TestScript) *scriptWorld { return ts.Value("world").(*scriptWorld) }

// scriptT lets startPublishing end a script as it ends a test.
type scriptT struct {
	testing.TB
	ts *testscript.TestScript
}

func (t scriptT) Helper()                   {}
func (t scriptT) Fatal(args ...any)         { t.ts.Fatalf("%s", fmt.Sprint(args...)) }
func (t scriptT) Errorf(f string, a ...any) { t.ts.Logf(f, a...) }
func (t scriptT) Cleanup(f func())          { t.ts.Defer(f) }

func scriptStart(ts *testscript.TestScript, _ bool, args []string) {
	w := world(ts)
	cfg := Config{
		Cluster: "aws", ID: 1, StateDir: ts.MkAbs("state"), Log: slog.New(slog.DiscardHandler), Guard: time.Second,
		Source: NewFolder(FolderConfig{Dir: ts.MkAbs("manifests"), Cache: ts.MkAbs("state/manifests"), Settle: 20 * time.Millisecond, Rescan: time.Second}),
	}
	if len(args) >= 2 {
		cfg.Cluster = args[0]
		_, err := fmt.Sscan(args[1], &cfg.ID)
		ts.Check(err)
		cfg.PodPrefixes = prefixList(args[2:]...)
	}
	w.run = startPublishing(scriptT{ts: ts}, cfg, w.store)
}

func scriptHalt(ts *testscript.TestScript, _ bool, _ []string) { world(ts).run.stop() }

func scriptNewStore(ts *testscript.TestScript, _ bool, _ []string) {
	world(ts).store = kvstore.NewMemory(kvstore.MemoryOptions{})
}

func scriptExpect(ts *testscript.TestScript, _ bool, args []string) {
	want := ts.ReadFile(args[0])
	prefix := ""
	if len(args) > 1 {
		prefix = args[1]
	}
	got := ""
	if os.Getenv("UPDATE_SCRIPTS") != "" {
		time.Sleep(time.Second)
		updateScript(ts, args[0], dumpStore(world(ts).store, prefix))
		return
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if got = dumpStore(world(ts).store, prefix); got == want {
			return
		}
	}
	ts.Fatalf("the store differs from %s:\n%s\nproblems:\n%s", args[0], diff.Diff(args[0], []byte(want), "store", []byte(got)), world(ts).run.problemText())
}

// updateScript writes what the store holds into the script, as UPDATE_SCRIPTS
// asks for. Read the difference before you commit it.
func updateScript(ts *testscript.TestScript, file, text string) {
	path := filepath.Join(scriptDir, ts.Name()+".txtar")
	archive, err := txtar.ParseFile(path)
	ts.Check(err)
	for i := range archive.Files {
		if archive.Files[i].Name == file {
			archive.Files[i].Data = []byte(text)
		}
	}
	ts.Check(os.WriteFile(path, txtar.Format(archive), 0o644))
}

func scriptProblem(ts *testscript.TestScript, neg bool, args []string) {
	re := regexp.MustCompile(args[0])
	text := ""
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if text = world(ts).run.problemText(); re.MatchString(text) != neg {
			return
		}
	}
	ts.Fatalf("problems (want match: %v of %q):\n%s", !neg, args[0], text)
}

// scriptResult checks the outcome of a registration. A refusal goes to the file
// refusal, for grep.
func scriptResult(ts *testscript.TestScript, neg bool, call func() error) {
	err := call()
	// The source is read on its own time: what is not there yet may come.
	for end := time.Now().Add(5 * time.Second); !neg && err != nil && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		err = call()
	}
	if neg == (err == nil) {
		ts.Fatalf("refused: %v", err)
	}
	if err != nil {
		ts.Check(os.WriteFile(ts.MkAbs("refusal"), []byte(err.Error()+"\n"), 0o644))
	}
}

func scriptRegisterNode(ts *testscript.TestScript, neg bool, args []string) {
	r := NodeRegistration{Node: args[0], UnderlayAddresses: addrList(args[1]), WireGuardEndpoint: args[1] + ":51820"}
	copy(r.WireGuardKey[:], strings.Repeat(args[0], 32))
	scriptResult(ts, neg, func() error {
		_, err := world(ts).run.registry.RegisterNode(context.Background(), r)
		return err
	})
}

func scriptRegisterPod(ts *testscript.TestScript, neg bool, args []string) {
	ns, name, _ := strings.Cut(args[1], "/")
	r := EndpointRegistration{Node: args[0], Namespace: ns, Pod: name, Owner: args[2], Ready: args[3] == "ready", Addresses: addrList(args[4:]...)}
	scriptResult(ts, neg, func() error {
		_, err := world(ts).run.registry.RegisterEndpoint(context.Background(), r)
		return err
	})
}

func scriptRemovePod(ts *testscript.TestScript, neg bool, args []string) {
	ns, name, _ := strings.Cut(args[1], "/")
	scriptResult(ts, neg, func() error {
		_, err := world(ts).run.registry.RegisterEndpoint(context.Background(), EndpointRegistration{Node: args[0], Namespace: ns, Pod: name, Owner: args[2], Remove: true})
		return err
	})
}
