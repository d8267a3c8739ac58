package install

import (
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

func goodNode() corev1.Node {
	var n corev1.Node
	n.Name = "n1"
	n.Spec.PodCIDRs = []string{"10.64.0.0/24", "fd10:1::/64"}
	n.Status.NodeInfo = corev1.NodeSystemInfo{KernelVersion: "6.18.44-cloud", OperatingSystem: "linux", Architecture: "amd64"}
	return n
}

// Each change of a good cluster makes its own finding, and a good one none.
func TestPreflight(t *testing.T) {
	for _, c := range []struct {
		name        string
		change      func(*facts)
		level, want string
	}{
		{"good", func(*facts) {}, "", ""},
		{"old Kubernetes", func(f *facts) { f.Kubernetes = "v1.28.9" }, levelError, "v1.28.9"},
		{"cloud's Kubernetes", func(f *facts) { f.Kubernetes = "v1.31.2-eks-1" }, "", ""},
		{"rights", func(f *facts) { f.Denied = []string{"create clusterroles"} }, levelError, "may not create clusterroles"},
		{"installed", func(f *facts) { f.Installed = true }, levelWarning, "installed already"},
		{"Calico", func(f *facts) { f.DaemonSets = []string{"kube-system/calico-node"} }, levelError, "Calico is there"},
		{"Calico, chained", func(f *facts) { f.DaemonSets, f.Chained = []string{"kube-system/calico-node"}, true }, "", ""},
		{"kube-proxy", func(f *facts) { f.DaemonSets = []string{"kube-system/kube-proxy"} }, levelWarning, "kube-proxy is there"},
		{"no nodes", func(f *facts) { f.Nodes = nil }, levelError, "has none"},
		{"old kernel", func(f *facts) { f.Nodes[0].Status.NodeInfo.KernelVersion = "5.15.0-91-generic" }, levelError, "5.15.0-91-generic"},
		{"kernel 6.6", func(f *facts) { f.Nodes[0].Status.NodeInfo.KernelVersion = "6.6+" }, "", ""},
		{"no prefixes", func(f *facts) { f.Nodes[0].Spec.PodCIDRs = nil }, levelError, "no podCIDRs"},
		{"no prefixes, chained", func(f *facts) { f.Nodes[0].Spec.PodCIDRs, f.Chained = nil, true }, "", ""},
		{"Windows", func(f *facts) { f.Nodes[0].Status.NodeInfo.OperatingSystem = "windows" }, levelWarning, "windows"},
		{"s390x", func(f *facts) { f.Nodes[0].Status.NodeInfo.Architecture = "s390x" }, levelError, "s390x"},
	} {
		f := facts{Kubernetes: "v1.37.2", Nodes: []corev1.Node{goodNode()}, DaemonSets: []string{"kube-system/other"}}
		c.change(&f)
		var found []Finding
		for _, one := range preflight(f) {
			if one.Level != levelOK {
				found = append(found, one)
				if one.Why == "" || one.Fix == "" {
					t.Errorf("%s: %+v says not why, or not what to do", c.name, one)
				}
			}
		}
		if c.want == "" && len(found) > 0 {
			t.Errorf("%s: %+v", c.name, found)
		}
		if c.want != "" && (len(found) != 1 || found[0].Level != c.level || !strings.Contains(found[0].Why, c.want)) {
			t.Errorf("%s: %+v, want one %s with %q", c.name, found, c.level, c.want)
		}
	}
}

func TestParts(t *testing.T) {
	var server appsv1.StatefulSet
	server.Name, server.Status.ReadyReplicas = "tombolo-apiserver", 1
	var agent appsv1.DaemonSet
	agent.Name, agent.Status.DesiredNumberScheduled, agent.Status.NumberReady = "tombolo-agent", 3, 2
	got := parts("ns", []appsv1.StatefulSet{server}, []appsv1.DaemonSet{agent})
	if len(got) != 2 || got[0].Level != levelOK || got[1].Level != levelError || got[1].Why != "2 of 3 ready" {
		t.Errorf("%+v", got)
	}
	if got := parts("ns", nil, nil); len(got) != 1 || got[0].Level != levelError {
		t.Errorf("nothing there: %+v", got)
	}
}
