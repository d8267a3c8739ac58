package install

import (
	"fmt"
	"io"
	"log/slog"
	"strings"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/kube"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/tombolo-mesh/tombolo/deploy/request"
)

// Cluster is one kube-apiserver, as Helm's library asks for it. Discovery is kept
// in memory: nothing is written to the user's cache folder.
type Cluster struct {
	config    clientcmd.ClientConfig
	rest      *rest.Config
	namespace string
	discovery discovery.CachedDiscoveryInterface
	Client    kubernetes.Interface
}

// Open reads the kubeconfig; it does not connect yet.
func Open(r request.Request) (*Cluster, error) {
	rules := &clientcmd.ClientConfigLoadingRules{Precedence: r.Kubeconfigs}
	if len(r.Kubeconfigs) == 1 {
		rules = &clientcmd.ClientConfigLoadingRules{ExplicitPath: r.Kubeconfigs[0]}
	}
	over := &clientcmd.ConfigOverrides{CurrentContext: r.Context}
	over.Context.Namespace = r.Namespace
	c := &Cluster{config: clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, over), namespace: r.Namespace}
	var err error
	if c.rest, err = c.config.ClientConfig(); err != nil {
		return nil, fmt.Errorf("no cluster to speak to: %w\nfix: give --kubeconfig FILE and --context NAME, or set KUBECONFIG", err)
	}
	c.rest.QPS, c.rest.Burst = -1, -1 // the server has limits of its own
	c.rest.WarningHandler = rest.NoWarnings{}
	client, err := discovery.NewDiscoveryClientForConfig(c.rest)
	if err != nil {
		return nil, err
	}
	c.discovery = memory.NewMemCacheClient(client)
	c.Client, err = kubernetes.NewForConfig(c.rest)
	return c, err
}

// The four methods of Helm's RESTClientGetter.

func (c *Cluster) ToRESTConfig() (*rest.Config, error) { return c.rest, nil }
func (c *Cluster) ToDiscoveryClient() (discovery.CachedDiscoveryInterface, error) {
	return c.discovery, nil
}
func (c *Cluster) ToRawKubeConfigLoader() clientcmd.ClientConfig { return c.config }
func (c *Cluster) ToRESTMapper() (meta.RESTMapper, error) {
	m := restmapper.NewDeferredDiscoveryRESTMapper(c.discovery)
	return restmapper.NewShortcutExpander(m, c.discovery, nil), nil
}

// helm is Helm's library at this cluster. What it logs is for its own developers.
func (c *Cluster) helm(stderr io.Writer) (*action.Configuration, error) {
	// Who owns an object's fields. By the program's own name, an upgrade by helm
	// would be in conflict with an installation by us.
	kube.ManagedFieldsManager = "helm"
	log := slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelError + 1})
	cfg := action.NewConfiguration(action.ConfigurationSetLogger(log))
	return cfg, cfg.Init(c, c.namespace, "secret")
}

// unreachable makes plain what client-go says of a server that does not answer.
func unreachable(err error) error {
	if text := err.Error(); strings.Contains(text, "connection refused") || strings.Contains(text, "i/o timeout") || strings.Contains(text, "no such host") {
		return fmt.Errorf("kube-apiserver does not answer: %w\nfix: check --context, and that this machine reaches the server of the kubeconfig", err)
	}
	return err
}
