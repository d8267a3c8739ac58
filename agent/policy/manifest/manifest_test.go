package manifest

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
)

const shop = `# what the shop is made of
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: red}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  nodeName: n1
  serviceAccountName: robot
  containers:
  - ports:
    - {name: http, containerPort: 8080}
    - {containerPort: 9000}
  - ports: [{name: dns, containerPort: 53, protocol: UDP}]
status:
  podIP: 10.1.1.10
  podIPs: [{ip: 10.1.1.10}, {ip: "fd00:1::10"}]
---
# nothing here
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: cart, namespace: shop, labels: {not: these}}
spec:
  template:
    metadata: {labels: {app: cart}}
    spec: {containers: [{ports: [{name: http, containerPort: 80}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: shop}
spec: {podSelector: {}}
`

const list = `{"apiVersion": "v1", "kind": "List", "items": [
 {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {"zone": "a"}},
  "spec": {"podCIDRs": ["10.1.1.0/24"]}, "status": {"addresses": [{"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "192.0.2.1"}]}},
 {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "over"}, "status": {"phase": "Succeeded"}},
 {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}},
 {"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {"name": "floor"}, "spec": {}}]}`

func files(content map[string]string) fstest.MapFS {
	m := fstest.MapFS{}
	for name, text := range content {
		m[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return m
}

func TestRead(t *testing.T) {
	f, err := ReadFS(files(map[string]string{"a/shop.yaml": shop, "z.json": list, "notes.txt": "no manifest", ".git/x.yaml": "{", "pods.yml": `
apiVersion: v1
kind: PodList
items: [{metadata: {name: bare}, spec: {hostNetwork: true}}]`}))
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	fmt.Fprintln(&got, f.Namespaces, f.Ignored)
	for _, p := range f.Pods {
		fmt.Fprintln(&got, p.Namespace, p.Name, p.Of, p.Node, p.ServiceAccount, p.HostNetwork, p.Labels, p.Addresses, p.Ports, p.Place)
	}
	for _, n := range f.Nodes {
		fmt.Fprintln(&got, n.Name, n.Labels, n.Addresses, n.Prefixes)
	}
	for _, p := range f.Policies {
		fmt.Fprintln(&got, p.Namespace, p.Name, len(p.JSON) > 0, p.Place)
	}
	want := `map[shop:map[team:red]] map[Service:1]
default bare    true map[] [] [] pods.yml, document 1, line 1
shop cart Deployment   false map[app:cart] [] [{http TCP 80}] a/shop.yaml, document 3, line 23
shop web  n1 robot false map[app:web] [10.1.1.10 fd00:1::10] [{http TCP 8080} {dns UDP 53}] a/shop.yaml, document 2, line 6
n1 map[zone:a] [192.0.2.1] [10.1.1.0/24]
 floor true z.json, document 1, line 1
shop deny true a/shop.yaml, document 4, line 31
`
	if got.String() != want {
		t.Errorf("got\n%swant\n%s", got.String(), want)
	}
}

// What is wrong is all said at once, with its place.
func TestMistakes(t *testing.T) {
	_, err := ReadFS(files(map[string]string{
		"a.yaml": "kind: [\n",
		"b.yaml": "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\n",
		"c.yaml": "a: 1\na: 2\n",
		"d.yaml": "apiVersion: v1\nkind: Pod\nmetadata: {name: d}\nstatus: {podIP: ten}\n---\nhello\n---\nkind: Pod\n",
		"e.yaml": "apiVersion: v1\nkind: Pod\nmetadata: {name: e, labels: [x]}\n",
		"f.yaml": "apiVersion: v1\nkind: Pod\nmetadata: {}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: f}\nspec: {containers: [{ports: [{name: x, containerPort: 70000}]}]}\n",
		"g.yaml": "apiVersion: v1\nkind: Pod\nmetadata: {name: g}\nspec: {containers: [{ports: [{name: x, containerPort: 7, protocol: ICMP}]}]}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: g}\nspec: {podCIDR: x}\n",
	}))
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		"a.yaml, document 1, line 1: not valid YAML: line 1: did",
		"b.yaml, document 2, line 5: Pod default/a is there already (b.yaml, document 1, line 1)\nfix: ",
		`c.yaml, document 1, line 1: not valid YAML: `, `"a" already set`,
		`d.yaml, document 1, line 1: Pod default/d: status.podIPs: "ten" is no IP address`,
		"d.yaml, document 2, line 6: a string where an object belongs",
		"d.yaml, document 3, line 8: apiVersion or kind is missing",
		"e.yaml, document 1, line 1: metadata.labels holds an array where an object belongs",
		"f.yaml, document 1, line 1: metadata.name of a Pod is missing",
		"f.yaml, document 2, line 5: Pod default/f: spec.containers[0].ports[0].containerPort: 70000 is not 1 to 65535",
		`g.yaml, document 1, line 1: Pod default/g: spec.containers[0].ports[0].protocol: "ICMP" is not TCP, UDP or SCTP`,
		`g.yaml, document 2, line 6: Node g: spec.podCIDRs: "x" is no prefix like 10.1.1.0/24`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("lacks %q:\n%v", want, err)
		}
	}
	if _, err := Read(t.TempDir() + "/none"); err == nil || !strings.Contains(err.Error(), "fix: ") {
		t.Errorf("no folder: %v", err)
	}
	if _, err := Read(t.TempDir()); err == nil || !strings.Contains(err.Error(), "holds no .yaml") {
		t.Errorf("empty folder: %v", err)
	}
}

// Whatever a file holds, reading it ends with an answer or an error.
func FuzzRead(f *testing.F) {
	f.Add(shop)
	f.Add(list)
	f.Add("---\n--- #\n{\n")
	f.Fuzz(func(t *testing.T, text string) {
		one, err := ReadFS(files(map[string]string{"x.yaml": text}))
		two, again := ReadFS(files(map[string]string{"x.yaml": text}))
		if fmt.Sprint(err) != fmt.Sprint(again) || !reflect.DeepEqual(one, two) {
			t.Errorf("two readings differ: %v, %v", err, again)
		}
	})
}
