package install

import (
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Finding is one thing that was looked at.
type Finding struct {
	What  string `json:"what"`
	Level string `json:"level"` // ok, warning, error, unknown
	Why   string `json:"why,omitempty"`
	Fix   string `json:"fix,omitempty"`
}

const (
	levelOK      = "ok"
	levelWarning = "warning"
	levelError   = "error"
	// levelUnknown is what cannot be seen through Kubernetes before anything runs
	// on the nodes. It is said, as its silence would be taken for ok.
	levelUnknown = "unknown"
)

// facts are what a cluster says of itself before an installation.
type facts struct {
	Kubernetes string // v1.37.2
	Nodes      []corev1.Node
	Pods       []corev1.Pod // in all namespaces: which ports of their nodes they hold
	Services   []corev1.Service
	DaemonSets []string          // namespace/name, in all namespaces
	Namespace  map[string]string // labels of Tombolo's own; nil: it does not exist yet
	Denied     []string          // what the user may not do
	Servers    []string          // addresses of kube-apiserver in its EndpointSlice
	Server     string            // where nodes would reach it, as the kubeconfig has it; empty: not there
	Installed  bool
	Set        settings
}

// Kernels from here on have all that the data plane is tested with. Kubernetes
// puts the node's name into the tokens of pods from here on, which nodes register
// with.
const oldestKernel, oldestKubernetes = "6.6", "1.30"

// preflight decides what is in the way.
func preflight(f facts) []Finding {
	out := []Finding{kubernetesFinding(f.Kubernetes)}
	out = append(out, rightsFindings(f)...)
	if f.Installed {
		out = append(out, Finding{What: "installation", Level: levelWarning, Why: "Tombolo is installed already", Fix: "use 'tombolo upgrade', and 'tombolo check' without --pre"})
	}
	out = append(out, serverFinding(f))
	out = append(out, otherFindings(f)...)
	out = append(out, maskFindings(f)...)
	if len(f.Nodes) == 0 {
		out = append(out, Finding{What: "nodes", Level: levelError, Why: "the cluster has none", Fix: "let its nodes register first"})
	}
	for _, n := range f.Nodes {
		out = append(out, nodeFindings(n, f.Set)...)
	}
	out = append(out, placeFindings(f)...)
	out = append(out, prefixFindings(f)...)
	out = append(out, portFindings(f)...)
	return append(out, unseen(f.Set)...)
}

func kubernetesFinding(version string) Finding {
	if older(version, oldestKubernetes) {
		return Finding{What: "Kubernetes", Level: levelError, Why: "it is " + version, Fix: "bring it to " + oldestKubernetes + " or later"}
	}
	return Finding{What: "Kubernetes", Level: levelOK, Why: version}
}

func rightsFindings(f facts) (out []Finding) {
	for _, what := range f.Denied {
		out = append(out, Finding{What: "rights", Level: levelError, Why: "this user may not " + what, Fix: "install as a cluster administrator"})
	}
	if level := f.Namespace["pod-security.kubernetes.io/enforce"]; level != "" && level != "privileged" {
		out = append(out, Finding{What: "rights", Level: levelError, Why: "Tombolo's namespace is there and lets in only pods of the level " + level + ", not those on the host network",
			Fix: "label it pod-security.kubernetes.io/enforce=privileged, or take another with -n"})
	}
	if len(out) == 0 {
		out = append(out, Finding{What: "rights", Level: levelOK})
	}
	return out
}

// serverFinding says where nodes would reach kube-apiserver without any Service.
func serverFinding(f facts) Finding {
	out := Finding{What: "kube-apiserver", Level: levelOK}
	switch {
	case f.Set.Kubernetes.Host != "":
		out.Why = "nodes reach it at " + f.Set.Kubernetes.Host + ", as you say"
	case f.Server != "":
		out.Why = "nodes reach it at " + f.Server + ", as in the kubeconfig"
	case len(f.Servers) == 0:
		out.Level, out.Why, out.Fix = levelError, "neither the kubeconfig nor the EndpointSlice default/kubernetes has an address that nodes could use", "set kubernetes.host"
	case len(f.Servers) > 1:
		out.Level, out.Why = levelWarning, "of its addresses "+strings.Join(f.Servers, ", ")+" the first would be taken; without that control plane the mesh API server has none"
		out.Fix = "set kubernetes.host to a load balancer in front of them"
	default:
		out.Why = "nodes reach it at " + f.Servers[0] + ", as its EndpointSlice has it"
	}
	return out
}

// unseen is what an administrator has to look at: Kubernetes does not tell it, and
// nothing of Tombolo's runs on the nodes yet.
func unseen(s settings) (out []Finding) {
	if s.Agent.MountBPFFS {
		out = append(out, Finding{What: "bpffs", Level: levelOK, Why: "an init container mounts it where it is missing (agent.mountBPFFS)"})
	} else {
		out = append(out, Finding{What: "bpffs", Level: levelUnknown, Why: "whether nodes have " + s.Agent.BPFFS + " mounted; systemd mounts it",
			Fix: "'mount -t bpf' on a node lists it; where it does not, set agent.mountBPFFS=true, else agents there end and say so"})
	}
	gossip := ""
	if p := strconv.Itoa(s.Agent.GossipPort); p != "0" {
		gossip = ", and UDP and TCP " + p + " between the nodes of this cluster (else each agent judges by its own probes alone)"
	}
	return append(out,
		Finding{What: "ports", Level: levelUnknown, Why: "what the nodes' own programs listen on, as they are no pods",
			Fix: "'ss -ltun' on a node; ours are " + strings.Join(s.ports().texts(), ", ")},
		Finding{What: "firewalls", Level: levelUnknown, Why: "whether they let UDP " + strconv.Itoa(s.Agent.WireguardPort) + " through between nodes of all clusters, and TCP " + strconv.Itoa(s.Apiserver.Port) + " to the mesh API servers" + gossip,
			Fix: "open them"},
		Finding{What: "other clusters", Level: levelUnknown, Why: "whether their names, numbers and prefixes differ from these", Fix: "'tombolo mesh join TOKEN --dry-run' compares them, before anything is changed"})
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
