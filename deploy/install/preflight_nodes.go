package install

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// otherCNI are DaemonSets by whose name another CNI plugin or service proxy shows.
var otherCNI = map[string]string{
	"calico-node": "Calico", "cilium": "Cilium", "kube-flannel-ds": "Flannel", "kube-flannel": "Flannel", "weave-net": "Weave Net",
	"antrea-agent": "Antrea", "kube-router": "kube-router", "aws-node": "the Amazon VPC CNI", "azure-cns": "the Azure CNI", "kindnet": "kindnet", "ovnkube-node": "OVN-Kubernetes", "canal": "Canal",
}

// traces are annotations of nodes by which a CNI plugin shows that is no
// DaemonSet, such as the one in k3s.
var traces = map[string]string{"flannel.alpha.coreos.com/backend-type": "Flannel", "projectcalico.org/IPv4Address": "Calico", "k8s.ovn.org/node-subnets": "OVN-Kubernetes"}

// maskers are DaemonSets that masquerade what pods send to addresses that they do not know as pods', and how
// they are told of the mesh's.
var maskers = map[string]string{
	"aws-node":            "set its AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS to them (or AWS_VPC_K8S_CNI_EXTERNALSNAT=true)",
	"ip-masq-agent":       "add them to nonMasqueradeCIDRs in its ConfigMap ip-masq-agent",
	"azure-ip-masq-agent": "add them to nonMasqueradeCIDRs in a ConfigMap of its own beside azure-ip-masq-agent-config",
}

// maskFindings are about who hides pods' addresses beside Tombolo chained. Most of what goes to the mesh passes
// it by, as it goes into the tunnel before the stack; packets too large for the tunnel do not.
func maskFindings(f facts) (out []Finding) {
	if f.Set.CNI.Mode != "chained" {
		return nil
	}
	for _, name := range f.DaemonSets {
		_, short, _ := strings.Cut(name, "/")
		if fix := maskers[short]; fix != "" {
			out = append(out, Finding{What: "masquerading", Level: levelWarning,
				Why: "DaemonSet " + name + " masquerades what pods send outside; whether it spares the pod and tunnel prefixes of the mesh is not looked at, and packets too large for the tunnel would reach other clusters from a node's address",
				Fix: fix})
		}
	}
	return out
}

// otherFindings are about what else does Tombolo's work.
func otherFindings(f facts) (out []Finding) {
	seen := make(map[string]bool)
	proxy, chained := false, f.Set.CNI.Mode == "chained"
	for _, name := range f.DaemonSets {
		_, short, _ := strings.Cut(name, "/")
		proxy = proxy || short == "kube-proxy"
		if other := otherCNI[short]; other != "" && f.Set.CNI.Mode == "main" {
			seen[other] = true
			out = append(out, Finding{What: "CNI", Level: levelError, Why: other + " is there (DaemonSet " + name + ")",
				Fix: "remove it; or leave pods' interfaces to it with cni.mode=chained"})
		}
		if short == "kube-proxy" && !chained {
			out = append(out, Finding{What: "service proxy", Level: levelWarning, Why: "kube-proxy is there; Tombolo does its work, and the two do it twice",
				Fix: "delete DaemonSet " + name + " once Tombolo runs"})
		}
	}
	for _, key := range slices.Sorted(maps.Keys(traces)) {
		i := slices.IndexFunc(f.Nodes, func(n corev1.Node) bool { return n.Annotations[key] != "" })
		if i >= 0 && !seen[traces[key]] && f.Set.CNI.Mode == "main" {
			out = append(out, Finding{What: "CNI", Level: levelWarning, Why: traces[key] + " is or was there: node " + f.Nodes[i].Name + " has its annotation " + key,
				Fix: "make sure that it is gone, with its file in /etc/cni/net.d (k3s: --flannel-backend=none)"})
		}
	}
	k3s := slices.ContainsFunc(f.Nodes, func(n corev1.Node) bool { return strings.Contains(n.Status.NodeInfo.KubeletVersion, "+k3s") })
	if chained && !proxy && !k3s {
		out = append(out, Finding{What: "service proxy", Level: levelWarning, Why: "no DaemonSet kube-proxy is there; with cni.mode=chained node ports and load balancers are its work",
			Fix: "see that it runs in another way, or do without node ports"})
	}
	if k3s && !chained {
		out = append(out, Finding{What: "service proxy", Level: levelWarning, Why: "k3s has kube-proxy and a network policy controller within; whether they are off is not to be seen",
			Fix: "start its servers with --disable-kube-proxy --disable-network-policy"})
	}
	if len(out) == 0 {
		out = append(out, Finding{What: "CNI", Level: levelOK, Why: map[bool]string{false: "no other is to be seen, nor kube-proxy", true: "another one connects the pods, kube-proxy is there"}[chained]})
	}
	return out
}

// nodeFindings are about one node.
func nodeFindings(n corev1.Node, s settings) (out []Finding) {
	what := "node " + n.Name
	info := n.Status.NodeInfo
	add := func(level, why, fix string) {
		out = append(out, Finding{What: what, Level: level, Why: why, Fix: fix})
	}
	if !s.runsOn(n) {
		return []Finding{{What: what, Level: levelOK, Why: "no agent comes here (agent.nodeSelector)"}}
	}
	if info.OperatingSystem != "" && info.OperatingSystem != "linux" {
		add(levelError, "it runs "+info.OperatingSystem, "keep agents off it: agent.nodeSelector with kubernetes.io/os=linux")
		return out
	}
	if older(info.KernelVersion, oldestKernel) {
		add(levelError, "its kernel is "+info.KernelVersion, "bring it to "+oldestKernel+" or later")
	}
	if info.Architecture != "" && info.Architecture != "amd64" && info.Architecture != "arm64" {
		add(levelError, "it is "+info.Architecture, "there are images for amd64 and arm64; keep agents off it with agent.nodeSelector")
	}
	runtime, note := runtimeOf(info.ContainerRuntimeVersion)
	if note == "" {
		add(levelWarning, "its container runtime is "+info.ContainerRuntimeVersion+", with which Tombolo was never run", "use containerd; or try it on a node that matters to nobody")
	}
	if len(n.Spec.PodCIDRs) == 0 && s.CNI.Mode == "main" {
		add(levelError, "it has no podCIDRs", "run kube-controller-manager with --allocate-node-cidrs and --cluster-cidr")
	}
	if len(out) == 0 {
		add(levelOK, fmt.Sprintf("kernel %s, %s%s, pods %s", info.KernelVersion, runtime, note, strings.Join(n.Spec.PodCIDRs, " ")), "")
	}
	return out
}

// runtimeOf is a container runtime, and what that means for CNI; no note is one
// that is not known.
func runtimeOf(version string) (name, note string) {
	name, number, _ := strings.Cut(version, "://")
	switch {
	case version == "":
		return "container runtime not known", " to Kubernetes"
	case name != "containerd":
		return version, ""
	case older(number, "2.0"):
		// No matter: the agent sweeps addresses of pods that are gone by itself.
		return "containerd " + number, " (before 2.0: it asks plugins for neither STATUS nor GC; the agent collects by itself)"
	}
	return "containerd " + number, " (CNI 1.1)"
}

// placeFindings are about nodes that values name.
func placeFindings(f facts) (out []Finding) {
	find := func(name string) *corev1.Node {
		for i := range f.Nodes {
			if f.Nodes[i].Name == name {
				return &f.Nodes[i]
			}
		}
		return nil
	}
	if name := f.Set.Apiserver.Storage.Node; name != "" && find(name) == nil {
		out = append(out, Finding{What: "state node", Level: levelError, Why: "apiserver.storage.node is " + name + ", and there is no such node", Fix: "name one of the cluster's"})
	}
	for _, m := range f.Set.Etcd.Members.Nodes {
		n := find(m.Node)
		if n == nil {
			out = append(out, Finding{What: "etcd member", Level: levelError, Why: "etcd.members.nodes names " + m.Node + ", and there is no such node", Fix: "name three or five of the cluster's"})
			continue
		}
		// Its certificate and the other members expect it there: the first is what a pod is told.
		if own := internal(*n); len(own) > 0 && own[0] != m.Address {
			out = append(out, Finding{What: "etcd member", Level: levelError, Why: "node " + m.Node + " is given as " + m.Address + ", its first InternalIP is " + own[0], Fix: "correct etcd.members.nodes"})
		}
	}
	return out
}

func internal(n corev1.Node) (all []string) {
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			all = append(all, a.Address)
		}
	}
	return all
}

// named is a prefix and whose it is.
type named struct {
	netip.Prefix
	whose string
}

// prefixFindings are about pod prefixes that are in one another's way, or in the
// way of nodes and Services.
func prefixFindings(f facts) (out []Finding) {
	wrong := func(why, fix string) {
		out = append(out, Finding{What: "prefixes", Level: levelError, Why: why, Fix: fix})
	}
	var pods []named
	for _, n := range f.Nodes {
		for _, text := range n.Spec.PodCIDRs {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				wrong("podCIDR "+text+" of node "+n.Name+" is no prefix", "correct Node.spec.podCIDRs")
				continue
			}
			for _, other := range pods {
				if p.Overlaps(other.Prefix) {
					wrong(fmt.Sprintf("podCIDR %s of node %s and %s of %s overlap", p, n.Name, other.Prefix, other.whose), "give each node prefixes of its own")
				}
			}
			pods = append(pods, named{p, "node " + n.Name})
		}
	}
	for _, a := range usedAddresses(f) {
		for _, p := range pods {
			if p.Contains(a.Addr()) {
				wrong(fmt.Sprintf("%s has %s, which lies within podCIDR %s of %s", a.whose, a.Addr(), p.Prefix, p.whose), "pods, nodes and Services need ranges apart")
				break
			}
		}
	}
	if set := f.Set.Cluster.PodPrefixes; len(set) > 0 {
		for _, p := range pods {
			if !slices.ContainsFunc(set, func(text string) bool {
				q, err := netip.ParsePrefix(text)
				return err == nil && q.Bits() <= p.Bits() && q.Contains(p.Addr())
			}) {
				wrong(fmt.Sprintf("podCIDR %s of %s lies in none of cluster.podPrefixes", p.Prefix, p.whose), "add what covers it")
			}
		}
	}
	if len(out) == 0 && len(pods) > 0 {
		out = append(out, Finding{What: "prefixes", Level: levelOK, Why: "pods, nodes and Services of this cluster are apart"})
	}
	return out
}

// usedAddresses are those of nodes, and of Services with a ClusterIP, of which one
// a family shows where their range lies.
func usedAddresses(f facts) (out []named) {
	add := func(text, whose string) {
		if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, named{netip.PrefixFrom(a, a.BitLen()), whose})
		}
	}
	for _, n := range f.Nodes {
		for _, a := range internal(n) {
			add(a, "node "+n.Name)
		}
	}
	for _, s := range f.Services {
		for _, a := range s.Spec.ClusterIPs {
			add(a, "Service "+s.Namespace+"/"+s.Name)
		}
	}
	return out
}
