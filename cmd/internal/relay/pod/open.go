// Package pod reaches sockets inside pods: it finds Tombolo's pods of a cluster
// that a kubeconfig names, and runs the relay in them by exec. What it dials is a
// connection to the socket, as if it were on this machine.
package pod

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // sign in as kubectl does
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// Config says which cluster, and where in it.
type Config struct {
	Kubeconfig []string // files, merged as kubectl does
	Context    string   // "" = the kubeconfig's current one
	Namespace  string   // of Tombolo
}

// Cluster is where pods are looked for.
type Cluster struct {
	cfg    Config
	rest   *rest.Config
	client *rest.RESTClient
}

// Open reads the kubeconfig. It speaks to nobody yet.
func Open(cfg Config) (*Cluster, error) {
	raw, err := load(cfg.Kubeconfig)
	if err != nil {
		return nil, err
	}
	if cfg.Context == "" {
		cfg.Context = raw.CurrentContext
	}
	if _, ok := raw.Contexts[cfg.Context]; !ok {
		return nil, noContext(cfg, raw)
	}
	conf, err := clientcmd.NewNonInteractiveClientConfig(*raw, cfg.Context, nil, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("context %q of %s cannot be used: %w", cfg.Context, strings.Join(cfg.Kubeconfig, ", "), err)
	}
	conf.UserAgent = "tombolo"
	conf.WarningHandlerWithContext = rest.NoWarnings{}
	c := &Cluster{cfg: cfg, rest: conf}
	if c.client, err = newClient(conf); err != nil {
		return nil, fmt.Errorf("context %q of %s cannot be used: %w", cfg.Context, strings.Join(cfg.Kubeconfig, ", "), err)
	}
	return c, nil
}

// Contexts are the names of the contexts in the files, in order.
func Contexts(files []string) ([]string, error) {
	raw, err := load(files)
	if err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(raw.Contexts)), nil
}

func load(files []string) (*api.Config, error) {
	var there []string
	for _, f := range files {
		if _, err := os.Stat(f); err == nil {
			there = append(there, f)
		}
	}
	if len(there) == 0 {
		return nil, fmt.Errorf("there is no kubeconfig %s\nfix: name one with --kubeconfig or KUBECONFIG", strings.Join(files, ", "))
	}
	raw, err := (&clientcmd.ClientConfigLoadingRules{Precedence: there}).Load()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig cannot be read: %w", err)
	}
	return raw, nil
}

func noContext(cfg Config, raw *api.Config) error {
	names := slices.Sorted(maps.Keys(raw.Contexts))
	files := strings.Join(cfg.Kubeconfig, ", ")
	switch {
	case len(names) == 0:
		return fmt.Errorf("kubeconfig %s holds no context\nfix: name another file with --kubeconfig or KUBECONFIG", files)
	case cfg.Context == "":
		return fmt.Errorf("kubeconfig %s has no current context\nfix: give --context, one of %s", files, strings.Join(names, ", "))
	}
	return fmt.Errorf("kubeconfig %s has no context %q\nfix: give one of %s", files, cfg.Context, strings.Join(names, ", "))
}

// newClient knows pods alone: all kinds together would be megabytes of program.
func newClient(conf *rest.Config) (*rest.RESTClient, error) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	metav1.AddToGroupVersion(scheme, corev1.SchemeGroupVersion)
	c := rest.CopyConfig(conf)
	c.GroupVersion, c.APIPath = &corev1.SchemeGroupVersion, "/api"
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	return rest.RESTClientFor(c)
}
