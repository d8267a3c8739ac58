package install

import (
	"encoding/json"
	"fmt"

	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	corev1 "k8s.io/api/core/v1"
)

// settings are the values of the chart that a look at the cluster needs.
type settings struct {
	Cluster    struct{ PodPrefixes []string }
	Kubernetes struct{ Host string }
	Apiserver  struct {
		Port    int
		Storage struct{ Node string }
	}
	Etcd struct {
		Mode    string
		Members struct {
			Nodes                             []struct{ Node, Address string }
			ClientPort, PeerPort, MetricsPort int
		}
	}
	Agent struct {
		WireguardPort   int
		GossipPort      int
		NATPorts, BPFFS string
		MountBPFFS      bool
		NodeSelector    map[string]string
	}
	CNI     struct{ Mode string }
	MCS     struct{ DNSPort int }
	Metrics struct{ ApiserverPort, AgentPort int }
}

// readSettings are a user's values over the chart's own.
func readSettings(ch *chart.Chart, values map[string]any) (s settings, err error) {
	text, err := json.Marshal(loader.MergeMaps(ch.Values, values))
	if err == nil {
		err = json.Unmarshal(text, &s) // keys are matched whatever their case
	}
	if err != nil {
		return s, fmt.Errorf("values: %w; deploy/chart/values.yaml shows what each may be", err)
	}
	return s, nil
}

// runsOn: an agent comes to the node.
func (s settings) runsOn(n corev1.Node) bool {
	for key, value := range s.Agent.NodeSelector {
		if n.Labels[key] != value {
			return false
		}
	}
	return true
}
