package install

import (
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

func goodNode(name, pods, address string) corev1.Node {
	var n corev1.Node
	n.Name = name
	n.Spec.PodCIDRs = strings.Fields(pods)
	n.Status.NodeInfo = corev1.NodeSystemInfo{KernelVersion: "6.18.44-cloud", OperatingSystem: "linux", Architecture: "amd64", ContainerRuntimeVersion: "containerd://2.1.4"}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: name}, {Type: corev1.NodeInternalIP, Address: address}}
	return n
}

func goodCluster(t *testing.T) facts {
	ch, err := Chart("v1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	f := facts{
		Kubernetes: "v1.37.2", DaemonSets: []string{"kube-system/other"}, Servers: []string{"10.0.0.1:6443"},
		Nodes: []corev1.Node{goodNode("n1", "10.64.0.0/24 fd10:1::/64", "10.0.0.1"), goodNode("n2", "10.64.1.0/24 fd10:1:0:1::/64", "10.0.0.2")},
	}
	if f.Set, err = readSettings(ch, nil); err != nil {
		t.Fatal(err)
	}
	return f
}

func pod(node string, hostPort int32, protocol corev1.Protocol) corev1.Pod {
	var p corev1.Pod
	p.Namespace, p.Name, p.Spec.NodeName = "kube-system", "other", node
	p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{ContainerPort: hostPort, HostPort: hostPort, Protocol: protocol}}}}
	return p
}

// Each change of a good cluster makes its own finding, and a good one none.
func TestPreflight(t *testing.T) {
	for _, c := range []struct {
		name        string
		change      func(*facts)
		level, want string
	}{
		{"good", func(*facts) {}, "", ""},
		{"old Kubernetes", func(f *facts) { f.Kubernetes = "v1.29.9" }, levelError, "v1.29.9"},
		{"cloud's Kubernetes", func(f *facts) { f.Kubernetes = "v1.31.2-eks-1" }, "", ""},
		{"rights", func(f *facts) { f.Denied = []string{"create clusterroles"} }, levelError, "may not create clusterroles"},
		{"namespace", func(f *facts) { f.Namespace = map[string]string{"pod-security.kubernetes.io/enforce": "baseline"} }, levelError, "level baseline"},
		{"namespace made for it", func(f *facts) { f.Namespace = podSecurity }, "", ""},
		{"installed", func(f *facts) { f.Installed = true }, levelWarning, "installed already"},
		{"no server", func(f *facts) { f.Servers = nil }, levelError, "neither the kubeconfig nor"},
		{"three servers", func(f *facts) { f.Servers = append(f.Servers, "10.0.0.2:6443") }, levelWarning, "10.0.0.1:6443, 10.0.0.2:6443"},
		{"three servers behind one", func(f *facts) { f.Servers, f.Server = append(f.Servers, "10.0.0.2:6443"), "api.example.com:443" }, "", ""},
		{"Calico", func(f *facts) { f.DaemonSets = []string{"kube-system/calico-node"} }, levelError, "Calico is there"},
		{"Calico, chained", func(f *facts) {
			f.DaemonSets, f.Set.CNI.Mode = []string{"kube-system/calico-node", "kube-system/kube-proxy"}, "chained"
		}, "", ""},
		{"no kube-proxy, chained", func(f *facts) { f.Set.CNI.Mode = "chained" }, levelWarning, "no DaemonSet kube-proxy is there"},
		{"masquerading, chained", func(f *facts) {
			f.DaemonSets, f.Set.CNI.Mode = []string{"kube-system/ip-masq-agent", "kube-system/kube-proxy"}, "chained"
		}, levelWarning, "DaemonSet kube-system/ip-masq-agent masquerades"},
		{"masquerading, not chained", func(f *facts) { f.DaemonSets = []string{"kube-system/ip-masq-agent"} }, "", ""},
		{"Flannel within k3s", func(f *facts) {
			f.Nodes[1].Annotations = map[string]string{"flannel.alpha.coreos.com/backend-type": "vxlan"}
		}, levelWarning, "node n2 has its annotation"},
		{"k3s", func(f *facts) { f.Nodes[0].Status.NodeInfo.KubeletVersion = "v1.33.1+k3s1" }, levelWarning, "k3s has kube-proxy"},
		{"kube-proxy", func(f *facts) { f.DaemonSets = []string{"kube-system/kube-proxy"} }, levelWarning, "kube-proxy is there"},
		{"no nodes", func(f *facts) { f.Nodes = nil }, levelError, "has none"},
		{"old kernel", func(f *facts) { f.Nodes[0].Status.NodeInfo.KernelVersion = "5.15.0-91-generic" }, levelError, "5.15.0-91-generic"},
		{"kernel 6.6", func(f *facts) { f.Nodes[0].Status.NodeInfo.KernelVersion = "6.6+" }, "", ""},
		{"old containerd", func(f *facts) { f.Nodes[0].Status.NodeInfo.ContainerRuntimeVersion = "containerd://1.6.20~ds1" }, "", ""},
		{"another runtime", func(f *facts) { f.Nodes[0].Status.NodeInfo.ContainerRuntimeVersion = "cri-o://1.33.0" }, levelWarning, "cri-o://1.33.0"},
		{"no prefixes", func(f *facts) { f.Nodes[0].Spec.PodCIDRs = nil }, levelError, "no podCIDRs"},
		{"no prefixes, chained", func(f *facts) {
			f.Nodes[0].Spec.PodCIDRs, f.Set.CNI.Mode = nil, "chained"
			f.DaemonSets = []string{"kube-system/kube-proxy"}
		}, "", ""},
		{"no prefix", func(f *facts) { f.Nodes[0].Spec.PodCIDRs = []string{"10.64"} }, levelError, "10.64 of node n1 is no prefix"},
		{"one prefix twice", func(f *facts) { f.Nodes[1].Spec.PodCIDRs = []string{"10.64.0.128/25"} }, levelError, "overlap"},
		{"node among pods", func(f *facts) { f.Nodes[1].Status.Addresses[1].Address = "10.64.0.2" }, levelError, "node n2 has 10.64.0.2"},
		{"Service among pods", func(f *facts) {
			f.Services = []corev1.Service{{Spec: corev1.ServiceSpec{ClusterIPs: []string{"10.64.0.10"}}}}
		}, levelError, "has 10.64.0.10"},
		{"headless", func(f *facts) {
			f.Services = []corev1.Service{{Spec: corev1.ServiceSpec{ClusterIPs: []string{"None"}}}}
		}, "", ""},
		{"prefix of the cluster", func(f *facts) { f.Set.Cluster.PodPrefixes = []string{"10.64.0.0/16", "fd10:1::/56"} }, "", ""},
		{"other prefix of the cluster", func(f *facts) { f.Set.Cluster.PodPrefixes = []string{"10.64.0.0/24", "fd10:1::/56"} }, levelError, "10.64.1.0/24 of node n2 lies in none"},
		{"Windows", func(f *facts) { f.Nodes[0].Status.NodeInfo.OperatingSystem = "windows" }, levelError, "windows"},
		{"Windows, kept off", func(f *facts) {
			f.Nodes[0].Status.NodeInfo.OperatingSystem = "windows"
			f.Nodes[1].Labels = map[string]string{"kubernetes.io/os": "linux"}
			f.Set.Agent.NodeSelector = f.Nodes[1].Labels
		}, "", ""},
		{"s390x", func(f *facts) { f.Nodes[0].Status.NodeInfo.Architecture = "s390x" }, levelError, "s390x"},
		{"state node", func(f *facts) { f.Set.Apiserver.Storage.Node = "n3" }, levelError, "apiserver.storage.node is n3"},
		{"member", func(f *facts) {
			f.Set.Etcd.Members.Nodes = append(f.Set.Etcd.Members.Nodes, struct{ Node, Address string }{"n2", "10.0.0.9"})
		}, levelError, "its first InternalIP is 10.0.0.2"},
		{"mesh port", func(f *facts) { f.Pods = []corev1.Pod{pod("n2", 9443, "TCP")} }, levelError, "TCP 9443 of node n2 is taken by pod kube-system/other"},
		{"mesh port elsewhere", func(f *facts) { f.Set.Apiserver.Storage.Node, f.Pods = "n1", []corev1.Pod{pod("n2", 9443, "TCP")} }, "", ""},
		{"tunnel's port", func(f *facts) { f.Pods = []corev1.Pod{pod("n2", 51820, "UDP")} }, levelError, "UDP 51820"},
		{"gossip's port", func(f *facts) { f.Pods = []corev1.Pod{pod("n2", 9444, "TCP")} }, levelError, "TCP 9444"},
		{"gossip's port, unused", func(f *facts) { f.Set.Agent.GossipPort, f.Pods = 0, []corev1.Pod{pod("n2", 9444, "TCP")} }, "", ""},
		{"tunnel's number by TCP", func(f *facts) { f.Pods = []corev1.Pod{pod("n2", 51820, "TCP")} }, "", ""},
		{"port of the probes, on the host network", func(f *facts) {
			p := pod("n1", 0, "")
			p.Spec.HostNetwork, p.Spec.Containers[0].Ports[0].ContainerPort = true, 9971
			f.Pods = []corev1.Pod{p}
		}, levelError, "TCP 9971"},
		{"port of a pod that ended", func(f *facts) {
			f.Pods = []corev1.Pod{pod("n2", 9443, "TCP")}
			f.Pods[0].Status.Phase = corev1.PodSucceeded
		}, "", ""},
		{"our own port", func(f *facts) {
			f.Pods = []corev1.Pod{pod("n2", 9443, "TCP")}
			f.Pods[0].Labels = map[string]string{"app.kubernetes.io/part-of": "tombolo"}
		}, "", ""},
		{"node port among ours", func(f *facts) {
			f.Services = []corev1.Service{{Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{NodePort: 61234}}}}}
		}, levelError, "node port 61234"},
	} {
		f := goodCluster(t)
		c.change(&f)
		var found []Finding
		for _, one := range preflight(f) {
			if one.Level != levelOK && (one.Why == "" || one.Fix == "") {
				t.Errorf("%s: %+v says not why, or not what to do", c.name, one)
			}
			if one.Level != levelOK && one.Level != levelUnknown {
				found = append(found, one)
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

// What cannot be seen is said, with the port numbers of this installation.
func TestUnseen(t *testing.T) {
	f := goodCluster(t)
	f.Set.Agent.WireguardPort = 51999
	var text string
	for _, one := range preflight(f) {
		if one.Level == levelUnknown {
			text += one.What + ": " + one.Why + " " + one.Fix + "\n"
		}
	}
	for _, want := range []string{"/sys/fs/bpf mounted", "agent.mountBPFFS=true", "UDP 51999 (agent.wireguardPort)", "TCP 9443 (apiserver.port)", "TCP 9971", "let UDP 51999 through", "TCP 9444 between the nodes of this cluster", "--dry-run"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	f.Set.Agent.MountBPFFS = true
	for _, one := range preflight(f) {
		if one.What == "bpffs" && one.Level != levelOK {
			t.Errorf("with an init container for it: %+v", one)
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
