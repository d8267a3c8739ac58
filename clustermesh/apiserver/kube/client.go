package kube

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/flowcontrol"
)

// DefaultNamespace is Tombolo's own namespace where nobody says otherwise.
const DefaultNamespace = "tombolo-system"

// serviceAccount is where the kubelet mounts a pod's own credentials.
const serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount"

// Config says which kube-apiserver is meant. Zero is the one of the cluster this
// process runs in.
type Config struct {
	Kubeconfig string // file; empty = in-cluster credentials, or the usual places if Context is given
	Context    string // of the kubeconfig; empty = its current one
	Namespace  string // Tombolo's own; empty = the pod's, else DefaultNamespace
	UserAgent  string
	Log        *slog.Logger // nil = discard
}

// Client reaches one kube-apiserver. It is safe for concurrent use.
type Client struct {
	// Namespace is Tombolo's own.
	Namespace string
	// Host is the URL of the API server.
	Host string

	log    *slog.Logger
	config *rest.Config
	codecs serializer.CodecFactory

	mu     sync.Mutex
	groups map[schema.GroupVersion]rest.Interface
}

// Open reads the credentials; nothing is dialled.
func Open(cfg Config) (*Client, error) {
	rc, err := restConfig(cfg)
	if err != nil {
		return nil, err
	}
	return New(rc, cfg)
}

// New is a Client by ready-made settings of client-go; of cfg only what is not
// about finding them counts.
func New(rc *rest.Config, cfg Config) (*Client, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	rc = rest.CopyConfig(rc)
	if rc.UserAgent = cfg.UserAgent; rc.UserAgent == "" {
		rc.UserAgent = "tombolo"
	}
	// One budget for all groups: a burst of Events must not become one of each.
	rc.RateLimiter = flowcontrol.NewTokenBucketRateLimiter(50, 100)
	rc.Timeout = 0 // watches are long; requests have contexts
	c := &Client{
		Namespace: ownNamespace(cfg.Namespace), Host: rc.Host, log: cfg.Log, config: rc,
		codecs: serializer.NewCodecFactory(Scheme), groups: make(map[schema.GroupVersion]rest.Interface),
	}
	for gv := range builtIn {
		if _, err := c.Group(gv); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func restConfig(cfg Config) (*rest.Config, error) {
	if cfg.Kubeconfig == "" && cfg.Context == "" {
		rc, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("in-cluster credentials: %w; outside of a cluster give --kubeconfig FILE", err)
		}
		return rc, nil
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	if cfg.Kubeconfig != "" {
		rules = &clientcmd.ClientConfigLoadingRules{ExplicitPath: cfg.Kubeconfig}
	}
	rc, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: cfg.Context}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w; correct --kubeconfig or --kube-context", err)
	}
	return rc, nil
}

// ownNamespace is as given, or that of the pod this process runs in.
func ownNamespace(given string) string {
	if given != "" {
		return given
	}
	if text, err := os.ReadFile(filepath.Join(serviceAccount, "namespace")); err == nil {
		if ns := strings.TrimSpace(string(text)); ns != "" {
			return ns
		}
	}
	return DefaultNamespace
}

// Group is the REST client of one version of an API group. Kubernetes' own
// groups are spoken to in protobuf, custom resources in JSON.
func (c *Client) Group(gv schema.GroupVersion) (rest.Interface, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if have := c.groups[gv]; have != nil {
		return have, nil
	}
	rc := rest.CopyConfig(c.config)
	rc.RateLimiter = c.config.RateLimiter
	rc.GroupVersion = &gv
	rc.APIPath = "/apis"
	if gv.Group == "" {
		rc.APIPath = "/api"
	}
	rc.NegotiatedSerializer = c.codecs.WithoutConversion()
	rc.ContentType, rc.AcceptContentTypes = runtime.ContentTypeJSON, runtime.ContentTypeJSON
	if builtIn[gv] {
		rc.ContentType = runtime.ContentTypeProtobuf
		rc.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	}
	client, err := rest.RESTClientFor(rc)
	if err != nil {
		return nil, fmt.Errorf("client of %s: %w", gv, err)
	}
	c.groups[gv] = client
	return client, nil
}

// Dynamic is a client of objects as they are in JSON.
func (c *Client) Dynamic() (dynamic.Interface, error) { return dynamic.NewForConfig(c.config) }

// Metadata is a client of objects' metadata alone.
func (c *Client) Metadata() (metadata.Interface, error) { return metadata.NewForConfig(c.config) }

// CloseIdle closes connections that nobody uses.
func (c *Client) CloseIdle() {
	for gv := range builtIn {
		if g, err := c.Group(gv); err == nil {
			if r, ok := g.(*rest.RESTClient); ok && r.Client != nil {
				r.Client.CloseIdleConnections()
			}
		}
	}
}

// RequestTime is how long one request may take that is not a watch.
const RequestTime = 15 * time.Second
