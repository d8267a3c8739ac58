package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
)

// World is the clusters of a run. ID is in the name of all that the run makes there.
type World struct {
	options
	ID       string
	Clusters []*Cluster
	Lab      *Lab // nil on -contexts
	out      io.Writer
	begin    time.Time
	janitor  *keeper

	uninstalled bool       // Tombolo was installed and is gone again
	before      *plainPods // chained: what was there before Tombolo; nil if that was not seen
}

// Cluster is a cluster and its clients. Number is its cluster ID in the mesh.
type Cluster struct {
	Name       string
	Number     int
	Context    string
	Kubeconfig string
	Nodes      []Node
	Config     *rest.Config
	Client     kubernetes.Interface
	Dynamic    dynamic.Interface
	mapper     *restmapper.DeferredDiscoveryRESTMapper
	world      *World
}

// Node is one of its nodes.
type Node struct {
	Name  string
	Addrs []netip.Addr // at which it is reached: the node's internal addresses
}

// runLabel is on all that a run makes on clusters that are not its own.
const runLabel = "tombolo-test"

func open(ctx context.Context, o options, out io.Writer) (*World, error) {
	var b [3]byte
	rand.Read(b[:])
	w := &World{options: o, ID: hex.EncodeToString(b[:]), out: out, begin: time.Now()}
	var err error
	if o.contexts == "" {
		err = w.openLab(ctx)
	} else {
		err = w.openContexts()
	}
	if err == nil {
		err = w.findNodes(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

func (w *World) openContexts() error {
	for i, name := range strings.Split(w.contexts, ",") {
		if err := w.addCluster(fmt.Sprintf("test%d", i+1), name, w.kubeconfig); err != nil {
			return err
		}
		if w.installed {
			if err := w.Clusters[i].learnName(); err != nil {
				return err
			}
		}
	}
	k, err := keep(w)
	w.janitor = k
	return err
}

// learnName asks a cluster that has Tombolo what it is called in the mesh.
func (c *Cluster) learnName() error {
	m, err := c.Client.CoreV1().ConfigMaps(systemNamespace).Get(context.Background(), "tombolo-mesh", metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("context %s: what its cluster is called: %w (without -installed Tombolo is installed)", c.Context, err)
	}
	c.Name = strings.TrimSpace(m.Data["cluster"])
	return nil
}

func (w *World) addCluster(name, context, kubeconfig string) error {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: context}).ClientConfig()
	if err != nil {
		return fmt.Errorf("context %s: %w", context, err)
	}
	cfg.QPS, cfg.Burst = 200, 400 // a test asks often
	c := &Cluster{Name: name, Number: len(w.Clusters) + 1, Context: context, Kubeconfig: kubeconfig, Config: cfg, world: w}
	if c.Client, err = kubernetes.NewForConfig(cfg); err != nil {
		return err
	}
	if c.Dynamic, err = dynamic.NewForConfig(cfg); err != nil {
		return err
	}
	c.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(c.Client.Discovery()))
	w.Clusters = append(w.Clusters, c)
	return nil
}

func (w *World) findNodes(ctx context.Context) error {
	for _, c := range w.Clusters {
		nodes, err := c.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return fmt.Errorf("%s: list nodes: %w", c.Name, err)
		}
		for _, n := range nodes.Items {
			node := Node{Name: n.Name}
			for _, a := range n.Status.Addresses {
				if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == "InternalIP" {
					node.Addrs = append(node.Addrs, ip)
				}
			}
			c.Nodes = append(c.Nodes, node)
		}
		if len(c.Nodes) == 0 {
			return fmt.Errorf("%s has no nodes", c.Name)
		}
	}
	return nil
}

// close removes what the run made, unless it is to be kept.
func (w *World) close() error {
	if w.keep {
		if w.Lab != nil {
			fmt.Fprintf(w.out, "kept: LAB_BIN=%s LAB_DIR=%s %s/down.sh takes it down\n", w.Lab.bin, w.Lab.Dir, w.labScripts)
		}
		return w.janitor.dismiss()
	}
	var errs []error
	if w.Lab != nil {
		errs = append(errs, w.Lab.down())
	} else {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		for _, c := range w.Clusters {
			errs = append(errs, c.sweep(ctx, w.ID))
		}
	}
	return errors.Join(append(errs, w.janitor.dismiss())...)
}

// sweep deletes the namespaces of a run, and with them all that it made.
func (c *Cluster) sweep(ctx context.Context, id string) error {
	list, err := c.Client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{LabelSelector: runLabel + "=" + id})
	if err != nil {
		return fmt.Errorf("%s: what the run left: %w", c.Name, err)
	}
	var errs []error
	for _, ns := range list.Items {
		errs = append(errs, c.Client.CoreV1().Namespaces().Delete(ctx, ns.Name, metav1.DeleteOptions{}))
	}
	return errors.Join(errs...)
}

// env is what programs need to find a cluster.
func (c *Cluster) env() []string {
	if c.Kubeconfig == "" {
		return os.Environ()
	}
	return append(os.Environ(), "KUBECONFIG="+c.Kubeconfig)
}
