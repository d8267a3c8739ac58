package install

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/strvals"
)

var update = flag.Bool("update", false, "write the golden files anew")

// base are values without which nothing can be rendered where there is no cluster
// to ask.
var base = []string{"cluster.name=aws", "cluster.id=1", "kubernetes.host=10.0.0.1", "apiserver.storage.node=n1"}

const threeNodes = "etcd.members.nodes[0].node=n1,etcd.members.nodes[0].address=10.0.0.1," +
	"etcd.members.nodes[1].node=n2,etcd.members.nodes[1].address=10.0.0.2," +
	"etcd.members.nodes[2].node=n3,etcd.members.nodes[2].address=10.0.0.3"

func valuesOf(t *testing.T, set ...string) map[string]any {
	t.Helper()
	v := map[string]any{}
	for _, s := range set {
		if err := strvals.ParseInto(s, v); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
	return v
}

func render(t *testing.T, set ...string) (string, string, error) {
	t.Helper()
	return Render(t.Context(), RenderOptions{Version: "v1.2.3", Namespace: DefaultNamespace, Kubernetes: "v1.37.0"}, valuesOf(t, set...))
}

// chained are values of a cluster whose pods another CNI connects.
var chained = []string{"cni.mode=chained", "cluster.podPrefixes={100.64.0.0/16}", "cluster.tunnelPrefixes={10.255.0.0/20}"}

// cases are the shapes that users choose between.
var cases = map[string][]string{
	"default":  nil,
	"ha":       {"etcd.mode=members", "apiserver.replicas=3", "etcd.members.tls=certManager", threeNodes},
	"ha6":      {"etcd.mode=members", "apiserver.replicas=3", "etcd.members.tls=secrets", strings.ReplaceAll(threeNodes, "10.0.0.", "fd00::")},
	"external": {"etcd.mode=external", "apiserver.replicas=2", "etcd.external.secretName=etcd-client", "etcd.external.endpoints={https://10.0.0.9:2379,https://10.0.0.8:2379}"},
	"lb":       {"apiserver.service.type=LoadBalancer", "apiserver.advertise={mesh.aws.example:9443}", "metrics.expose=true", "metrics.podMonitor.enabled=true"},
	"none":     {"cni.mode=none", "cluster.podPrefixes={10.64.0.0/16,fd10:1::/56}", "mcs.enabled=false", "mcs.installCRDs=false"},
	"special": {"agent.mountBPFFS=true", "apiserver.gossipKeyRotation=90m", "agent.extraCapabilities={DAC_OVERRIDE}", "image.digest=sha256:" + strings.Repeat("0", 64), "image.pullSecrets={pull}",
		"ca.certManager.enabled=true", "mcs.dnsPort=1053", "apiserver.storage.type=persistentVolumeClaim", "apiserver.storage.storageClassName=local"},
	"chained": append(chained, "cni.chain=10-aws.conflist"),
	"cleanup": {"cleanup.enabled=true"},
}

func TestRendered(t *testing.T) {
	for name, set := range cases {
		t.Run(name, func(t *testing.T) {
			got, notes, err := render(t, append(append([]string{}, base...), set...)...)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, filepath.Join("testdata", name+".yaml"), withoutCRDs(got)+"---\n# NOTES\n"+notes)
		})
	}
}

// withoutCRDs leaves definitions out of the golden files: they are others' files,
// as they are.
func withoutCRDs(manifest string) string {
	var out []string
	for _, doc := range strings.Split(manifest, "\n---\n") {
		if !strings.Contains(doc, "\nkind: CustomResourceDefinition") {
			out = append(out, doc)
		}
	}
	return strings.Join(out, "\n---\n")
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is not what is rendered now; look at the difference after 'make kustomize' (go test ./deploy/install -update)", path)
	}
}

// Definitions are part of the release, so that an upgrade brings them up to date,
// and stay when it goes. Another project's are left out where that project brings them.
func TestDefinitions(t *testing.T) {
	for set, want := range map[string][]string{
		"mcs.installCRDs=true":  {"meshpeers.tombolo.io", "serviceexports.multicluster.x-k8s.io", "serviceimports.multicluster.x-k8s.io"},
		"mcs.installCRDs=false": {"meshpeers.tombolo.io"},
		"cleanup.enabled=true":  {"meshpeers.tombolo.io", "serviceexports.multicluster.x-k8s.io", "serviceimports.multicluster.x-k8s.io"},
	} {
		manifest, _, err := render(t, append([]string{set}, base...)...)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for name, o := range objects(t, manifest) {
			if o["kind"] != "CustomResourceDefinition" {
				continue
			}
			got = append(got, strings.TrimPrefix(name, "CustomResourceDefinition//"))
			m := o["metadata"].(map[string]any)
			if a, _ := m["annotations"].(map[string]any); a["helm.sh/resource-policy"] != "keep" {
				t.Errorf("%s: %s would go with the release, and all of its objects with it", set, name)
			}
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", set, got, want)
		}
	}
	if _, err := os.Stat("../chart/crds"); err == nil {
		t.Error("the chart has a folder crds, which Helm never brings up to date")
	}
}

// What cannot work is refused with a reason, by the schema or in words.
func TestRefused(t *testing.T) {
	for _, c := range []struct {
		set  []string
		want string
	}{
		{[]string{"cluster.name="}, "cluster.name is empty: name this cluster"},
		{[]string{"cluster.id=0"}, "cluster.id is 0: number this cluster"},
		{[]string{"cluster.id=4096"}, "/cluster/id"},
		{[]string{"cluster.name=Not_A_Label"}, "/cluster/name"},
		{[]string{"cluster.podPrefixes={ten}"}, "/cluster/podPrefixes/0"},
		{[]string{"clusters.name=x"}, "clusters"},
		{[]string{"kubernetes.host="}, "kubernetes.host is empty and the cluster cannot be asked"},
		{[]string{"kubernetes.host=https://10.0.0.1"}, "/kubernetes/host"},
		{[]string{"apiserver.storage.node="}, "apiserver.storage.node is empty and the cluster cannot be asked"},
		{[]string{"apiserver.replicas=3"}, "apiserver.replicas is 3 with an embedded etcd"},
		{[]string{"apiserver.advertise={mesh.example}"}, "/apiserver/advertise/0"},
		{[]string{"apiserver.service.type=ClusterIP"}, "/apiserver/service/type"},
		{[]string{"etcd.mode=members", "etcd.members.tls=certManager"}, "etcd.members.nodes has 0: three or five nodes"},
		{[]string{"etcd.mode=members", threeNodes}, "etcd.members.tls is generated, but this Helm cannot ask"},
		{[]string{"etcd.mode=members", "etcd.members.tls=certManager", threeNodes, "etcd.members.nodes[2].node=n1"}, "names a node twice"},
		{[]string{"etcd.mode=members", "etcd.members.tls=certManager", threeNodes, "etcd.members.nodes[2].address=fd00::3"}, "mixes IPv4 and IPv6"},
		{[]string{"etcd.mode=external"}, "etcd.external.endpoints is empty"},
		{[]string{"etcd.mode=external", "etcd.external.endpoints={http://e:2379}"}, "/etcd/external/endpoints/0"},
		{[]string{"etcd.mode=external", "etcd.external.endpoints={https://e:2379}"}, "etcd.external.secretName is empty"},
		{[]string{"cni.mode=chained"}, "/cluster/podPrefixes"},
		{[]string{"cni.mode=chained", "cluster.podPrefixes={10.64.0.0/16}"}, "/cluster/tunnelPrefixes"},
		{[]string{"cluster.podPrefixes={10.64.0.0/16}", "cluster.tunnelPrefixes={10.65.0.0/16}"}, "/cluster/tunnelPrefixes"},
		{append(chained, "agent.encrypt=all"), "/agent/encrypt"},
		{append(chained, "agent.xdp={eth0}"), "/agent/xdp"},
		{[]string{"cni.chain=10-aws.conflist"}, "/cni/chain"},
		{[]string{"cni.mode=both"}, "/cni/mode"},
		{[]string{"cni.confName=x.conf"}, "/cni/confName"},
		{[]string{"agent.extraCapabilities={CAP_SYS_PTRACE}"}, "/agent/extraCapabilities/0"},
		{[]string{"agent.extraCapabilities={ALL}"}, "/agent/extraCapabilities/0"},
		{[]string{"agent.stateDir=/data"}, "/agent/stateDir"},
		{[]string{"agent.wireguardPort=0"}, "/agent/wireguardPort"},
		{[]string{"metrics.podMonitor.enabled=true"}, "needs metrics.expose"},
		{[]string{"image.digest=abc"}, "/image/digest"},
	} {
		_, _, err := render(t, append(append([]string{}, base...), c.set...)...)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %q in it", c.set, err, c.want)
		}
	}
}

func TestLint(t *testing.T) {
	l := action.NewLint()
	l.Strict, l.Namespace = true, DefaultNamespace
	if res := l.Run([]string{"../chart"}, valuesOf(t, base...)); len(res.Errors) > 0 {
		t.Error(res.Errors)
	}
	if _, err := loader.Load("../chart"); err != nil {
		t.Error(err)
	}
}

func TestChartVersion(t *testing.T) {
	for in, want := range map[string]string{"v1.2.3": "1.2.3", "1.2.3-rc.1": "1.2.3-rc.1", "dev": "0.0.0-dev.vdev", "": "0.0.0-dev.vdev", "c264767-dirty": "0.0.0-dev.vc264767-dirty", "0123456": "0.0.0-dev.v0123456"} {
		if got := chartVersion(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func TestAddressForNodes(t *testing.T) {
	ca, other := []byte("CA\n"), []byte("OTHER")
	for _, c := range []struct {
		server kubeServer
		host   string
	}{
		{kubeServer{url: "https://10.0.0.1:6443", ca: ca}, "10.0.0.1:6443"},
		{kubeServer{url: "https://api.example.com", ca: []byte("CA")}, "api.example.com:443"},
		{kubeServer{url: "https://[fd00::1]:6443", ca: ca}, "fd00::1:6443"},
		{kubeServer{url: "https://127.0.0.1:6443", ca: ca}, ""},
		{kubeServer{url: "https://[::1]:6443", ca: ca}, ""},
		{kubeServer{url: "https://localhost:6443", ca: ca}, ""},
		{kubeServer{url: "https://kind-control-plane:6443", ca: ca}, ""},
		{kubeServer{url: "http://10.0.0.1:8080", ca: ca}, ""},
		{kubeServer{url: "https://10.0.0.1:6443", ca: other}, ""},
		{kubeServer{url: "https://10.0.0.1:6443"}, ""},
		{kubeServer{url: "https://rancher.example.com/k8s/clusters/c-1", ca: ca}, ""},
		{kubeServer{url: "https://10.0.0.1:6443", ca: ca, proxy: true}, ""},
	} {
		host, port, ok := addressForNodes(c.server, ca)
		if got := host + ":" + port; ok != (c.host != "") || ok && got != c.host {
			t.Errorf("%s: %s %v, want %q", c.server.url, got, ok, c.host)
		}
	}
}
