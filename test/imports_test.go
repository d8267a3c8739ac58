// Package test holds tests of the whole house: who may import whom.
package test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/tombolo-mesh/tombolo/"

// heavy names the libraries that the table speaks of, by import path prefix.
// Small libraries are free.
var heavy = map[string]string{
	"go.etcd.io/etcd/server/":       "etcd server",
	"go.etcd.io/etcd/":              "etcd",
	"k8s.io/":                       "client-go",
	"github.com/cilium/ebpf":        "ebpf",
	"helm.sh/helm/":                 "helm",
	"golang.zx2c4.com/wireguard/wg": "wgctrl",
	"golang.zx2c4.com/wireguard":    "wireguard-go",
	"github.com/vishvananda/netl":   "netlink",
	"google.golang.org/grpc":        "grpc",
	"github.com/hashicorp/member":   "memberlist",
}

// The law: what each package may import, directly, of our own packages and of
// the heavy libraries; and what it must not even reach through others.
var law = map[string]struct {
	may   []string
	never []string
}{
	"clustermesh":                         {may: []string{"kvstore", "clustermesh/pb"}, never: []string{"etcd", "client-go", "ebpf", "netlink", "agent"}},
	"clustermesh/pb":                      {may: []string{"grpc"}, never: []string{"etcd", "client-go", "ebpf", "netlink", "agent"}},
	"clustermesh/apiserver":               {may: []string{"clustermesh", "clustermesh/apiserver/mcs", "clustermesh/pb", "kvstore", "kvstore/etcd", "certs", "client-go", "grpc"}, never: []string{"agent", "bpf", "netlink", "etcd server"}},
	"clustermesh/apiserver/kube":          {may: []string{"clustermesh/apiserver/kube/v1alpha1", "clustermesh/pb", "grpc", "certs", "clustermesh", "clustermesh/apiserver", "clustermesh/apiserver/mcs", "client-go"}, never: []string{"agent", "bpf", "netlink", "etcd server"}},
	"clustermesh/apiserver/kube/kubetest": {may: []string{"clustermesh/apiserver/kube", "client-go"}, never: []string{"agent", "bpf", "netlink", "etcd server"}},
	"clustermesh/apiserver/mcs":           {may: []string{"clustermesh", "client-go"}, never: []string{"agent", "bpf", "netlink", "etcd"}},
	"clustermesh/dns":                     {may: []string{"clustermesh", "clustermesh/apiserver/mcs"}, never: []string{"agent", "bpf", "netlink", "etcd"}},
	"kvstore":                             {never: []string{"etcd", "clustermesh", "agent", "client-go"}},
	"kvstore/kvtest":                      {may: []string{"kvstore"}, never: []string{"etcd", "clustermesh", "agent"}},
	"kvstore/etcd":                        {may: []string{"kvstore", "etcd", "grpc"}, never: []string{"clustermesh", "agent", "etcd server"}},
	"kvstore/etcd/embed":                  {may: []string{"kvstore", "kvstore/etcd", "etcd", "etcd server", "grpc"}, never: []string{"clustermesh", "agent"}},
	"agent":                               {may: []string{"clustermesh", "kvstore", "agent/policy", "agent/policy/trace"}, never: []string{"etcd", "client-go", "ebpf", "wgctrl", "netlink", "os/exec"}},
	"agent/gossip":                        {may: []string{"agent", "memberlist"}, never: []string{"etcd", "client-go", "ebpf", "wgctrl", "netlink"}}, // memberlist reaches os/exec: what finds out a machine's addresses, which is not asked
	"agent/policy":                        {may: []string{"clustermesh"}, never: []string{"agent", "etcd", "client-go", "ebpf", "netlink"}},
	"agent/policy/trace":                  {may: []string{"agent/policy", "clustermesh"}, never: []string{"agent", "etcd", "client-go", "ebpf", "netlink"}},
	"agent/policy/manifest":               {may: []string{"agent/policy", "agent/policy/trace", "clustermesh"}, never: []string{"agent", "etcd", "client-go", "ebpf", "netlink"}},
	"agent/cni":                           {may: []string{"clustermesh", "agent"}, never: []string{"etcd", "client-go", "ebpf", "netlink", "os/exec"}},
	"agent/agenttest":                     {may: []string{"agent", "clustermesh", "kvstore"}, never: []string{"etcd", "client-go", "ebpf", "wgctrl", "netlink"}},
	"agent/register":                      {may: []string{"clustermesh", "clustermesh/pb", "certs", "kvstore", "kvstore/etcd", "grpc"}, never: []string{"ebpf", "netlink", "client-go"}},
	"agent/linux":                         {may: []string{"agent/cni", "agent", "agent/policy", "bpf", "clustermesh", "ebpf", "wgctrl", "netlink"}, never: []string{"clustermesh/apiserver", "client-go", "etcd"}},
	"agent/tunnel":                        {may: []string{"wireguard-go", "netlink"}, never: []string{"agent", "clustermesh", "kvstore"}},
	"bpf":                                 {may: []string{"ebpf", "netlink"}, never: []string{"agent", "clustermesh", "kvstore", "certs"}},
	"certs":                               {never: []string{"agent", "clustermesh", "kvstore", "bpf", "grpc"}},
	"cmd/tombolo":                         {may: []string{"test/lab", "test/lab/demo", "clustermesh", "clustermesh/pb", "agent", "agent/policy", "agent/policy/manifest", "agent/policy/trace", "cmd/internal/relay/pod", "deploy/request", "grpc"}, never: []string{"etcd server", "helm", "k8s.io/client-go/kubernetes"}},
	"cmd/tombolo-install":                 {may: []string{"deploy/install", "deploy/request"}, never: []string{"etcd server", "ebpf", "agent", "clustermesh/apiserver"}},
	"deploy":                              {},
	"deploy/charttest":                    {never: []string{"helm", "client-go"}},
	"deploy/image":                        {},
	"deploy/install":                      {may: []string{"deploy", "deploy/request", "helm", "client-go"}, never: []string{"etcd server", "ebpf", "agent", "clustermesh/apiserver"}},
	"deploy/request":                      {never: []string{"helm", "client-go"}},
	"cmd/tombolo-apiserver":               {may: []string{"cmd/internal/relay", "clustermesh/apiserver", "clustermesh/apiserver/kube", "clustermesh/dns", "clustermesh", "kvstore", "kvstore/etcd", "kvstore/etcd/embed", "certs"}, never: []string{"agent", "bpf", "netlink"}},
	"cmd/tombolo-agent":                   {may: []string{"agent/cni", "agent/gossip", "cmd/internal/relay", "agent", "agent/register", "agent/linux", "agent/tunnel", "bpf", "certs", "clustermesh", "kvstore", "kvstore/etcd"}, never: []string{"client-go", "etcd server"}},
	"cmd/tombolo-cni":                     {may: []string{"netlink", "agent/cni", "agent"}, never: []string{"etcd", "client-go", "ebpf"}},
	"test":                                {},
	"test/runtests":                       {},
	"test/lab":                            {may: []string{"*"}},
	"test/lab/demo":                       {may: []string{"*"}},
	"test/lab/fault":                      {may: []string{"ebpf"}},
	"test/sim":                            {may: []string{"*"}},
	"test/script":                         {may: []string{"*"}},
	"test/faults":                         {may: []string{"agent", "agent/register", "clustermesh", "kvstore", "test/bench/stats", "test/lab"}},
	"test/judge":                          {},
	"test/kubernetes":                     {may: []string{"client-go"}, never: []string{"agent", "bpf", "clustermesh", "kvstore", "etcd server"}},
	"test/bench":                          {may: []string{"*"}},
	"test/bench/dataplane":                {may: []string{"agent", "agent/linux", "bpf", "clustermesh", "kvstore", "test/bench/stats", "ebpf", "netlink", "client-go"}, never: []string{"etcd server", "clustermesh/apiserver"}},
	"test/bench/stats":                    {never: []string{"agent", "bpf", "clustermesh", "kvstore"}},

	"clustermesh/apiserver/kube/v1alpha1": {may: []string{"client-go"}, never: []string{"agent", "clustermesh", "kvstore", "bpf", "etcd", "grpc"}},

	"cmd/internal/relay":             {never: []string{"agent", "clustermesh", "kvstore", "bpf", "certs", "client-go", "etcd", "grpc"}},
	"cmd/internal/relay/pod":         {may: []string{"cmd/internal/relay", "client-go"}, never: []string{"agent", "clustermesh", "kvstore", "bpf", "certs", "etcd", "grpc"}},
	"cmd/internal/relay/pod/podtest": {may: []string{"client-go"}, never: []string{"agent", "clustermesh", "kvstore", "etcd", "grpc"}},
}

// only names packages that nobody but the listed may import.
var only = map[string][]string{
	"kvstore/etcd/embed": {"cmd/tombolo-apiserver"},
	"deploy/install":     {"cmd/tombolo-install"},
	"test/lab":           {"cmd/tombolo", "test/lab/demo"},
	"test/lab/demo":      {"cmd/tombolo"},
}

type pkg struct {
	ImportPath    string
	Imports, Deps []string
	Error         *struct{ Err string }
}

func packages(t *testing.T) []pkg {
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,Deps,Error", "-deps=false", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// label is how the table calls an import: our own package, a heavy library, or
// "" for what is free.
func label(path string) string {
	if own, ok := strings.CutPrefix(path, module); ok {
		return own
	}
	best, name := "", ""
	for prefix, n := range heavy {
		if strings.HasPrefix(path, prefix) && len(prefix) > len(best) {
			best, name = prefix, n
		}
	}
	return name
}

func TestImportTable(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		row, ok := law[name]
		if !ok {
			t.Errorf("%s has no row in the table: a new package needs a row in ARCHITECTURE.md and here before it needs a folder", name)
			continue
		}
		for _, imp := range p.Imports {
			l := label(imp)
			if l != "" && !slices.Contains(row.may, l) && !slices.Contains(row.may, "*") {
				t.Errorf("%s imports %s (%s), which its row does not allow", name, imp, l)
			}
			if users, ok := only[l]; ok && !slices.Contains(users, name) && !strings.HasPrefix(name, "test") {
				t.Errorf("%s imports %s, which is for %s alone", name, l, strings.Join(users, ", "))
			}
		}
		for _, dep := range p.Deps {
			for _, never := range row.never {
				if label(dep) == never || dep == never {
					t.Errorf("%s reaches %s, which it must never", name, dep)
				}
			}
		}
	}
}

// Commands do not import each other; what they share is below internal.
func TestCommandsStandAlone(t *testing.T) {
	for _, p := range packages(t) {
		for _, imp := range p.Imports {
			if strings.HasPrefix(imp, module+"cmd/") && !strings.HasPrefix(imp, module+"cmd/internal/") {
				t.Errorf("%s imports %s", p.ImportPath, imp)
			}
		}
	}
}
