package install

import (
	"context"
	"fmt"
	"os"

	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/strvals"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tombolo-mesh/tombolo/deploy/request"
)

// readValues merges files of values and then single ones, as Helm does.
func readValues(r request.Request) (map[string]any, error) {
	values := map[string]any{}
	for _, path := range r.Files {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("values: %w", err)
		}
		one, err := loader.LoadValues(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("values in %s: %w", path, err)
		}
		values = loader.MergeMaps(values, one)
	}
	for _, s := range r.Set {
		if err := strvals.ParseInto(s, values); err != nil {
			return nil, fmt.Errorf("--set %s: %w; write it as key.of.the.chart=value", s, err)
		}
	}
	return values, nil
}

// fillAddress puts in where nodes reach kube-apiserver, unless it is said or
// better left to the chart. It returns what it has put in.
func (c *Cluster) fillAddress(ctx context.Context, ch *chart.Chart, values map[string]any) string {
	if said, ok := values["kubernetes"].(map[string]any); ok && said["host"] != nil && said["host"] != "" {
		return ""
	}
	ca := c.rest.CAData
	if len(ca) == 0 && c.rest.CAFile != "" {
		ca, _ = os.ReadFile(c.rest.CAFile)
	}
	root, err := c.Client.CoreV1().ConfigMaps("default").Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
	if err != nil {
		return ""
	}
	host, port, ok := addressForNodes(kubeServer{url: c.rest.Host, ca: ca, proxy: c.rest.Proxy != nil}, []byte(root.Data["ca.crt"]))
	if !ok {
		return ""
	}
	// As a default of the chart, not as the user's value: an upgrade looks again.
	ch.Values["kubernetes"] = map[string]any{"host": host, "port": port}
	return host + ":" + port
}
