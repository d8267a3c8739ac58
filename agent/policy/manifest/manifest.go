// Package manifest reads folders of ordinary Kubernetes manifests as far as
// network policy is concerned, without the Kubernetes libraries: what a person
// asks about before it is on any cluster. Reading is strict about what it needs
// and silent about all else; what it cannot read it names by file, document and
// field, all at once.
package manifest

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// Place is where an object stands: "shop.yaml, document 2, line 14".
type Place struct {
	File           string
	Document, Line int
}

func (p Place) String() string {
	return fmt.Sprintf("%s, document %d, line %d", p.File, p.Document, p.Line)
}

// Folder is what a folder says.
type Folder struct {
	Namespaces map[string]map[string]string // labels by name; nil: the namespace has no manifest
	Pods       []Pod                        // by namespace and name
	Nodes      []Node                       // by name
	Policies   []Policy                     // by namespace and name
	Ignored    map[string]int               // objects of kinds that policy does not look at
}

// Pod is a pod that runs, or stands for all that a workload would make.
type Pod struct {
	Namespace, Name string
	Of              string // kind of the workload; "" = it is a pod itself
	Node            string
	ServiceAccount  string
	HostNetwork     bool
	Labels          map[string]string
	Addresses       []netip.Addr
	Ports           []clustermesh.NamedPort
	Place           Place
}

// Node is a node.
type Node struct {
	Name      string
	Labels    map[string]string
	Addresses []netip.Addr // underlay
	Prefixes  []netip.Prefix
	Place     Place
}

// Policy is a NetworkPolicy, or without a namespace a ClusterNetworkPolicy, as JSON.
type Policy struct {
	Namespace, Name string
	JSON            []byte
	Place           Place
}

// Read reads every .yaml, .yml and .json below dir (or that one file). Names that
// begin with a dot are left out, as the mesh API server's folder does. The error
// holds everything that is wrong.
func Read(dir string) (*Folder, error) {
	st, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("there is no folder %s\nfix: name a folder of Kubernetes manifests (.yaml, .yml, .json)", dir)
	case err != nil:
		return nil, err
	case !st.IsDir():
		r := newReader()
		text, err := os.ReadFile(dir)
		if err != nil {
			return nil, err
		}
		r.file(path.Base(dir), text)
		return r.finish()
	}
	return ReadFS(os.DirFS(dir))
}

// ReadFS is Read on a file system.
func ReadFS(files fs.FS) (*Folder, error) {
	r, found := newReader(), false
	err := fs.WalkDir(files, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if base := path.Base(name); base != "." && strings.HasPrefix(base, ".") {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if d.IsDir() || !isManifest(name) {
			return nil
		}
		found = true
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return err
		}
		r.file(name, text)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, errors.New("the folder holds no .yaml, .yml or .json file\nfix: name a folder of Kubernetes manifests")
	}
	return r.finish()
}

func isManifest(name string) bool {
	switch path.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// objectName is how duplicates are told.
type objectName struct{ kind, namespace, name string }

func (n objectName) String() string {
	if n.namespace == "" {
		return n.kind + " " + n.name
	}
	return n.kind + " " + n.namespace + "/" + n.name
}

// reader collects what files say.
type reader struct {
	out  Folder
	seen map[objectName]Place
	errs []error
}

func newReader() *reader {
	return &reader{out: Folder{Namespaces: map[string]map[string]string{}, Ignored: map[string]int{}}, seen: map[objectName]Place{}}
}

func (r *reader) finish() (*Folder, error) {
	if len(r.errs) > 0 {
		return nil, errors.Join(r.errs...)
	}
	// A pod comes before a workload of its name, which is then left out.
	slices.SortFunc(r.out.Pods, func(a, b Pod) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name), strings.Compare(a.Of, b.Of))
	})
	r.out.Pods = slices.CompactFunc(r.out.Pods, func(a, b Pod) bool { return a.Namespace == b.Namespace && a.Name == b.Name })
	slices.SortFunc(r.out.Nodes, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(r.out.Policies, func(a, b Policy) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return &r.out, nil
}

// file takes one file in.
func (r *reader) file(name string, text []byte) {
	for i, part := range split(text) {
		at := Place{File: name, Document: i + 1, Line: part.line}
		converted, err := toJSON(part)
		if err != nil {
			r.fail(at, err)
			continue
		}
		r.object(at, converted, "", "")
	}
}

func (r *reader) fail(at Place, err error) {
	r.errs = append(r.errs, fmt.Errorf("%s: %w", at, err))
}

// head is what all objects have.
type head struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name      string            `json:"name"`
		Namespace string            `json:"namespace"`
		Labels    map[string]string `json:"labels"`
	} `json:"metadata"`
	Items []json.RawMessage `json:"items"`
}

// object takes one object in, or each of a list. Items of a typed list may leave
// out their kind.
func (r *reader) object(at Place, text []byte, apiVersion, kind string) {
	if string(text) == "null" {
		return // only comments
	}
	var h head
	if err := decode("", text, &h); err != nil {
		r.fail(at, err)
		return
	}
	if h.Kind == "" {
		h.Kind, h.APIVersion = kind, apiVersion
	}
	if h.Kind == "" || h.APIVersion == "" {
		r.fail(at, errors.New("apiVersion or kind is missing: not a Kubernetes object\nfix: add them, or move the file out of the folder"))
		return
	}
	if of, ok := strings.CutSuffix(h.Kind, "List"); ok && (of == "" || h.Items != nil) {
		version := h.APIVersion
		if of == "" {
			version = ""
		}
		for _, item := range h.Items {
			r.object(at, item, version, of)
		}
		return
	}
	take := r.takerOf(h)
	if take == nil {
		r.out.Ignored[h.Kind]++
		return
	}
	name := objectName{h.Kind, h.Metadata.Namespace, h.Metadata.Name}
	if err := r.check(&name); err != nil {
		r.fail(at, err)
		return
	}
	if before, twice := r.seen[name]; twice {
		r.fail(at, fmt.Errorf("%s is there already (%s)\nfix: remove one of the two", name, before))
		return
	}
	r.seen[name] = at
	if err := take(at, name, h.Metadata.Labels, text); err != nil {
		r.fail(at, fmt.Errorf("%s: %w", name, err))
	}
}

// check gives a namespaced object its namespace, and says what is wrong with a name.
func (r *reader) check(n *objectName) error {
	if n.name == "" {
		return fmt.Errorf("metadata.name of a %s is missing", n.kind)
	}
	switch n.kind {
	case "Pod", "NetworkPolicy", "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob":
		if n.namespace == "" {
			n.namespace = "default"
		}
	default:
		n.namespace = ""
	}
	if strings.ContainsAny(n.name+n.namespace, "/ \t\n") {
		return fmt.Errorf("metadata: %q is no name", n.name)
	}
	return nil
}
