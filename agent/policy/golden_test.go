package policy

import (
	"bytes"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"sigs.k8s.io/yaml"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

var update = flag.Bool("update", false, "write what comes out into testdata")

// Each file of testdata is a world (see command), policies as YAML, and in "want"
// the text of what they make.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no files", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := runGolden(t, a)
			i := slices.IndexFunc(a.Files, func(f txtar.File) bool { return f.Name == "want" })
			if i < 0 {
				t.Fatal("no want")
			}
			if *update {
				a.Files[i].Data = []byte(got)
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if want := string(a.Files[i].Data); got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

type golden struct {
	e      *Engine
	tables *Tables
	out    bytes.Buffer
	files  map[string][]byte
}

func runGolden(t *testing.T, a *txtar.Archive) string {
	g := &golden{e: New(Options{Cluster: 1, AllClusters: strings.Contains(string(a.Comment), "--policy-clusters=all")}), tables: NewTables(), files: map[string][]byte{}}
	var world []byte
	for _, f := range a.Files {
		switch {
		case f.Name == "world":
			world = f.Data
		case strings.HasSuffix(f.Name, ".yaml"):
			g.files[f.Name] = f.Data
		}
	}
	for line := range strings.Lines(string(world)) {
		if words := strings.Fields(line); len(words) > 0 {
			if err := g.command(words[0], words[1:]); err != nil {
				t.Fatalf("%s: %v", strings.TrimSpace(line), err)
			}
		}
	}
	return g.out.String()
}

// command:
//
//	identity 1:5 shop app=web namespace:team=red
//	pod db-0 1:5 http=tcp/80          a pod of this node
//	address 10.1.0.5 1:5 http=tcp/80
//	node n1 10.0.0.1 zone=a
//	policy a.yaml | delete a.yaml | delete identity 1:5
//	settle | apply | sweep
//	dump                              everything
//	problems
//	ask ingress db-0 1:6 10.0.0.1 tcp/80
func (g *golden) command(verb string, args []string) error {
	switch verb {
	case "identity":
		pod, ns := map[string]string{}, map[string]string{}
		for _, kv := range args[2:] {
			k, v, _ := strings.Cut(kv, "=")
			if key, ok := strings.CutPrefix(k, clustermesh.LabelNamespacePrefix); ok {
				ns[key] = v
			} else {
				pod[k] = v
			}
		}
		id := goldenIdentity(args[0])
		g.e.SetIdentity(id, clustermesh.SecurityLabels([]string{"", "one", "two"}[id.Cluster()], args[1], "", pod, ns))
	case "pod":
		ns, _, _ := strings.Cut(args[0], "/")
		g.e.SetPod(args[0], Pod{Namespace: ns, Identity: goldenIdentity(args[1]), Ports: goldenPorts(args[2:])})
	case "address":
		g.e.SetAddress(netip.MustParseAddr(args[0]), Address{Identity: goldenIdentity(args[1]), Ports: goldenPorts(args[2:])})
	case "node":
		n := Node{Addresses: []netip.Addr{netip.MustParseAddr(args[1])}}
		for _, kv := range args[2:] {
			k, v, _ := strings.Cut(kv, "=")
			n.Labels = append(n.Labels, clustermesh.Label{Key: k, Value: v})
		}
		g.e.SetNode(args[0], n)
	case "policy", "delete":
		if args[0] == "identity" {
			g.e.DeleteIdentity(goldenIdentity(args[1]))
			return nil
		}
		return g.policy(verb, args[0])
	case "settle":
		g.e.Apply(g.tables)
		for g.e.Sweep(g.tables) {
		}
	case "apply":
		g.e.Apply(g.tables)
	case "sweep":
		fmt.Fprintf(&g.out, "sweep: more %v\n", g.e.Sweep(g.tables))
	case "dump":
		g.e.WriteText(&g.out)
		g.tables.WriteText(&g.out)
	case "problems":
		for _, p := range g.e.Problems() {
			fmt.Fprintf(&g.out, "problem: %s\n  because %s\n  %s\n", p.What, p.Why, p.Fix)
		}
	case "ask":
		return g.ask(args)
	default:
		return fmt.Errorf("no command %q", verb)
	}
	return nil
}

func (g *golden) policy(verb, file string) error {
	text, err := yaml.YAMLToJSON(g.files[file])
	if err != nil {
		return err
	}
	var m struct {
		Metadata struct{ Namespace, Name string }
	}
	if err := yaml.Unmarshal(text, &m); err != nil {
		return err
	}
	n := Name{m.Metadata.Namespace, m.Metadata.Name}
	if verb == "delete" {
		g.e.DeletePolicy(n)
	} else {
		g.e.SetPolicy(n, text)
	}
	return nil
}

func (g *golden) ask(args []string) error {
	d := map[string]Direction{"ingress": Ingress, "egress": Egress}[args[0]]
	protoText, portText, _ := strings.Cut(args[4], "/")
	proto := map[string]clustermesh.Protocol{"tcp": clustermesh.TCP, "udp": clustermesh.UDP, "sctp": clustermesh.SCTP, "icmp": 1}[protoText]
	port, _ := strconv.Atoi(portText)
	subject, ok := g.tables.Pods[args[1]]
	if !ok {
		return fmt.Errorf("nothing was said of pod %s", args[1])
	}
	got := g.tables.Lookup(subject, d, goldenIdentity(args[2]), netip.MustParseAddr(args[3]), proto, uint16(port))
	rule := ""
	if got.Rule != 0 {
		name, _ := g.e.RuleName(got.Rule)
		rule = " by " + name
	}
	word := "denied"
	if got.Allow {
		word = "allowed"
	}
	fmt.Fprintf(&g.out, "ask %s: %s, %s%s\n", strings.Join(args, " "), word, got.Reason, rule)
	return nil
}

func goldenIdentity(text string) clustermesh.Identity {
	var cluster, number uint32
	fmt.Sscanf(text, "%d:%d", &cluster, &number)
	return clustermesh.MakeIdentity(clustermesh.ID(cluster), number)
}

func goldenPorts(words []string) []clustermesh.NamedPort {
	var out []clustermesh.NamedPort
	for _, w := range words {
		name, at, _ := strings.Cut(w, "=")
		proto, port, _ := strings.Cut(at, "/")
		n, _ := strconv.Atoi(port)
		out = append(out, clustermesh.NamedPort{Name: name, Protocol: map[string]clustermesh.Protocol{"tcp": clustermesh.TCP, "udp": clustermesh.UDP}[proto], Port: uint16(n)})
	}
	return out
}
