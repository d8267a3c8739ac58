package manifest

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/tombolo-mesh/tombolo/agent/policy/trace"
)

var update = flag.Bool("update", false, "rewrite the answers in testdata")

// Each file of testdata is folders and answers: below <cluster>/ manifests, and in
// "answers" lines of FROM TO PORT, each followed by what is answered. The comment
// on top may say "policy-clusters=all".
func TestAnswers(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatal("no testdata", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			a := txtar.Parse(text)
			w := worldOf(t, a)
			for i := range a.Files {
				if f := &a.Files[i]; f.Name == "answers" {
					got := answers(w, string(f.Data))
					if *update {
						f.Data = []byte(got)
					} else if got != string(f.Data) {
						t.Errorf("if it is meant: go test ./agent/policy/manifest -update\n--- got\n%s--- want\n%s", got, f.Data)
					}
				}
			}
			if *update {
				if err := os.WriteFile(path, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// worldOf makes the clusters in the order in which they come.
func worldOf(t testing.TB, a *txtar.Archive) *World {
	t.Helper()
	var clusters []Cluster
	folders := map[string]fstest.MapFS{}
	for _, f := range a.Files {
		cluster, name, ok := strings.Cut(f.Name, "/")
		if !ok {
			continue
		}
		if folders[cluster] == nil {
			folders[cluster] = fstest.MapFS{}
			clusters = append(clusters, Cluster{Name: cluster})
		}
		folders[cluster][name] = &fstest.MapFile{Data: f.Data}
	}
	for i := range clusters {
		var err error
		if clusters[i].Folder, err = ReadFS(folders[clusters[i].Name]); err != nil {
			t.Fatal(err)
		}
	}
	w, err := NewWorld(clusters, strings.Contains(string(a.Comment), "policy-clusters=all"))
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// answers writes the questions again, each with its answer: in brief, or where the
// question is followed by "?" in full.
func answers(w *World, text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if line = strings.TrimRight(line, "\n"); line == "" || strings.HasPrefix(line, "  ") {
			continue
		}
		fmt.Fprintln(&b, line)
		words := strings.Fields(line)
		if line[0] == '#' || len(words) < 3 {
			continue
		}
		q := trace.Question{From: words[0], To: words[1], Port: trace.Text(words[2])}
		a, err := trace.Trace(w, q)
		brief := trace.Quick(w, q)
		switch {
		case err != nil:
			fmt.Fprintf(&b, "  error: %s\n", strings.ReplaceAll(err.Error(), "\n", "\n  "))
		case brief.Verdict != a.Verdict || brief.Egress.Rule != ruleOf(a.Egress) || brief.Ingress.Rule != ruleOf(a.Ingress):
			fmt.Fprintf(&b, "  the short and the long answer differ: %+v %+v\n", brief, a)
		case len(words) > 3:
			for l := range strings.Lines(a.Text()) {
				fmt.Fprintf(&b, "  %s", l)
			}
		default:
			fmt.Fprintf(&b, "  %s: %s\n", a.Verdict, a.Why)
		}
	}
	return b.String()
}

func ruleOf(s trace.Side) string {
	if s.SideExplanation == nil {
		return ""
	}
	return s.Rule
}

// Alike folders make alike worlds, and no address is given twice.
func TestInventedAddresses(t *testing.T) {
	var pods strings.Builder
	for i := range 200 {
		fmt.Fprintf(&pods, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: p%d}\nspec: {nodeName: n%d}\n", i, i%2)
	}
	fmt.Fprint(&pods, "---\napiVersion: v1\nkind: Node\nmetadata: {name: n0}\nspec: {podCIDRs: [10.1.0.0/25, 'fd00::/120']}\n")
	make := func() *World {
		f, err := ReadFS(fstest.MapFS{"x.yaml": {Data: []byte(pods.String())}})
		if err != nil {
			t.Fatal(err)
		}
		w, err := NewWorld([]Cluster{{"aws", f}}, false)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	one, two := make(), make()
	seen := map[string]string{}
	for name, e := range one.clusters[0].pods {
		if got, again := fmt.Sprint(e.Addresses), fmt.Sprint(two.clusters[0].pods[name].Addresses); got != again || !e.Invented {
			t.Errorf("%s: %s, then %s", name, got, again)
		}
		want := 1
		if e.Node == "n0" {
			want = 2
		}
		if len(e.Addresses) != want {
			t.Errorf("%s has %v", name, e.Addresses)
		}
		for _, a := range e.Addresses {
			if other, twice := seen[a.String()]; twice {
				t.Errorf("%s and %s have %s", name, other, a)
			}
			seen[a.String()] = name
		}
	}
	if _, err := NewWorld([]Cluster{{"a", &Folder{}}, {"a", &Folder{}}}, false); err == nil {
		t.Error("two folders of a name pass")
	}
}
