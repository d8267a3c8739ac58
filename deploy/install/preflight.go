package install

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Finding is one thing that was looked at.
type Finding struct {
	What  string `json:"what"`
	Level string `json:"level"` // ok, warning, error
	Why   string `json:"why,omitempty"`
	Fix   string `json:"fix,omitempty"`
}

const (
	levelOK      = "ok"
	levelWarning = "warning"
	levelError   = "error"
)

// facts are what a cluster says of itself before an installation.
type facts struct {
	Kubernetes string // 1.37
	Nodes      []corev1.Node
	DaemonSets []string // namespace/name, in all namespaces
	Denied     []string // what the user may not do
	Installed  bool
	Chained    bool // cni.mode
	MountBPFFS bool
}

// Kernels from here on have all that the data plane is tested with.
const oldestKernel, oldestKubernetes = "6.6", "1.29"

// otherCNI are DaemonSets by whose name another CNI plugin or service proxy shows.
var otherCNI = map[string]string{
	"calico-node": "Calico", "cilium": "Cilium", "kube-flannel-ds": "Flannel", "kube-flannel": "Flannel", "weave-net": "Weave Net",
	"antrea-agent": "Antrea", "kube-router": "kube-router", "aws-node": "the Amazon VPC CNI", "azure-cns": "the Azure CNI", "kindnet": "kindnet", "ovnkube-node": "OVN-Kubernetes", "canal": "Canal",
}

// preflight decides what is in the way.
func preflight(f facts) []Finding {
	out := []Finding{kubernetesFinding(f.Kubernetes)}
	for _, what := range f.Denied {
		out = append(out, Finding{What: "rights", Level: levelError, Why: "this user may not " + what, Fix: "install as a cluster administrator"})
	}
	if len(f.Denied) == 0 {
		out = append(out, Finding{What: "rights", Level: levelOK})
	}
	if f.Installed {
		out = append(out, Finding{What: "installation", Level: levelWarning, Why: "Tombolo is installed already", Fix: "use 'tombolo upgrade', and 'tombolo check' without --pre"})
	}
	out = append(out, cniFindings(f.DaemonSets, f.Chained)...)
	if len(f.Nodes) == 0 {
		return append(out, Finding{What: "nodes", Level: levelError, Why: "the cluster has none", Fix: "let its nodes register first"})
	}
	for _, n := range f.Nodes {
		out = append(out, nodeFindings(n, f.Chained)...)
	}
	if !f.MountBPFFS {
		out = append(out, Finding{What: "bpffs", Level: levelOK, Why: "Kubernetes does not say whether nodes have /sys/fs/bpf mounted; systemd mounts it. Where agents say that it is not a bpffs, set agent.mountBPFFS=true"})
	}
	return out
}

func kubernetesFinding(version string) Finding {
	if older(version, oldestKubernetes) {
		return Finding{What: "Kubernetes", Level: levelError, Why: "it is " + version, Fix: "bring it to " + oldestKubernetes + " or later"}
	}
	return Finding{What: "Kubernetes", Level: levelOK, Why: version}
}

func cniFindings(daemonSets []string, chained bool) (out []Finding) {
	for _, name := range daemonSets {
		_, short, _ := strings.Cut(name, "/")
		if other := otherCNI[short]; other != "" && !chained {
			out = append(out, Finding{What: "CNI", Level: levelError, Why: other + " is there (DaemonSet " + name + ")",
				Fix: "remove it; living beside it (cni.mode=chained) is not there yet"})
		}
		if short == "kube-proxy" {
			out = append(out, Finding{What: "service proxy", Level: levelWarning, Why: "kube-proxy is there; Tombolo does its work, and the two do it twice",
				Fix: "delete DaemonSet " + name + " once Tombolo runs"})
		}
	}
	if len(out) == 0 {
		out = append(out, Finding{What: "CNI", Level: levelOK})
	}
	return out
}

func nodeFindings(n corev1.Node, chained bool) (out []Finding) {
	what := "node " + n.Name
	info := n.Status.NodeInfo
	if older(info.KernelVersion, oldestKernel) {
		out = append(out, Finding{What: what, Level: levelError, Why: "its kernel is " + info.KernelVersion, Fix: "bring it to " + oldestKernel + " or later"})
	}
	if info.OperatingSystem != "" && info.OperatingSystem != "linux" {
		out = append(out, Finding{What: what, Level: levelWarning, Why: "it runs " + info.OperatingSystem, Fix: "keep agents off it with agent.nodeSelector"})
	}
	if info.Architecture != "" && info.Architecture != "amd64" && info.Architecture != "arm64" {
		out = append(out, Finding{What: what, Level: levelError, Why: "it is " + info.Architecture, Fix: "there are images for amd64 and arm64; keep agents off it with agent.nodeSelector"})
	}
	if len(n.Spec.PodCIDRs) == 0 && !chained {
		out = append(out, Finding{What: what, Level: levelError, Why: "it has no podCIDRs", Fix: "run kube-controller-manager with --allocate-node-cidrs and --cluster-cidr"})
	}
	for _, cidr := range n.Spec.PodCIDRs {
		if _, err := netip.ParsePrefix(cidr); err != nil {
			out = append(out, Finding{What: what, Level: levelError, Why: "its podCIDR " + cidr + " is no prefix", Fix: "correct Node.spec.podCIDRs"})
		}
	}
	if len(out) == 0 {
		out = append(out, Finding{What: what, Level: levelOK, Why: fmt.Sprintf("kernel %s, pods %s", info.KernelVersion, strings.Join(n.Spec.PodCIDRs, " "))})
	}
	return out
}

// older compares the first two numbers of versions as distributions write them.
// One that cannot be read is not called old.
func older(version, than string) bool {
	a, b := numbers(version), numbers(than)
	if a == nil {
		return false
	}
	return a[0] < b[0] || a[0] == b[0] && a[1] < b[1]
}

func numbers(version string) []int {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(parts) < 2 {
		return nil
	}
	major, err := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(strings.TrimRightFunc(parts[1], func(r rune) bool { return r < '0' || r > '9' }))
	if err != nil || err2 != nil {
		return nil
	}
	return []int{major, minor}
}
