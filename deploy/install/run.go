package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/kube"
	releaser "helm.sh/helm/v4/pkg/release"
	release "helm.sh/helm/v4/pkg/release/v1"
	"helm.sh/helm/v4/pkg/storage/driver"

	"github.com/tombolo-mesh/tombolo/deploy/request"
)

// ErrAnswered ends a request with status 1 whose answer has said why.
var ErrAnswered = errors.New("answered")

// call is a request being done.
type call struct {
	request.Request
	out, err io.Writer
	cluster  *Cluster
	helm     *action.Configuration
}

// Run does what is asked.
func Run(ctx context.Context, r request.Request, out, stderr io.Writer) error {
	if r.Namespace == "" {
		r.Namespace = DefaultNamespace
	}
	if r.Timeout == 0 {
		r.Timeout = 5 * time.Minute
	}
	cluster, err := Open(r)
	if err != nil {
		return err
	}
	c := &call{Request: r, out: out, err: stderr, cluster: cluster}
	if c.helm, err = cluster.helm(stderr); err != nil {
		return err
	}
	do, ok := map[string]func(context.Context) error{"install": c.install, "upgrade": c.upgrade, "uninstall": c.uninstall, "check": c.check}[r.Verb]
	if !ok {
		return fmt.Errorf("no verb %q; there are install, upgrade, uninstall, check", r.Verb)
	}
	return unreachableIf(do(ctx))
}

func unreachableIf(err error) error {
	if err == nil {
		return nil
	}
	return unreachable(err)
}

func (c *call) install(ctx context.Context) error {
	ch, err := Chart(c.Version)
	if err != nil {
		return err
	}
	values, err := readValues(c.Request)
	if err != nil {
		return err
	}
	if there, err := c.present(); err != nil {
		return err
	} else if there {
		return fmt.Errorf("namespace %s has a Tombolo already: change it with 'tombolo upgrade'", c.Namespace)
	}
	from := c.cluster.fillAddress(ctx, ch, values)
	if !c.DryRun {
		if err := c.makeNamespace(ctx); err != nil {
			return err
		}
	}
	in := action.NewInstall(c.helm)
	in.ReleaseName, in.Namespace, in.Timeout = ReleaseName, c.Namespace, c.Timeout
	in.DryRunStrategy, in.HideSecret, in.WaitStrategy = c.dryRun(), c.DryRun, c.waiting()
	rel, err := in.RunWithContext(ctx, ch, values)
	return c.said(rel, err, from)
}

func (c *call) upgrade(ctx context.Context) error {
	ch, err := Chart(c.Version)
	if err != nil {
		return err
	}
	values, err := readValues(c.Request)
	if err != nil {
		return err
	}
	if there, err := c.present(); err != nil {
		return err
	} else if !there {
		return fmt.Errorf("there is no Tombolo in namespace %s: install it with 'tombolo install', or name its namespace with -n", c.Namespace)
	}
	from := c.cluster.fillAddress(ctx, ch, values)
	up := action.NewUpgrade(c.helm)
	up.Namespace, up.Timeout, up.MaxHistory = c.Namespace, c.Timeout, 10
	up.DryRunStrategy, up.HideSecret, up.WaitStrategy = c.dryRun(), c.DryRun, c.waiting()
	// What was set before stays set, over the defaults of the new chart.
	up.ResetThenReuseValues = true
	rel, err := up.RunWithContext(ctx, ReleaseName, ch, values)
	return c.said(rel, err, from)
}

// present: the release is there.
func (c *call) present() (bool, error) {
	_, err := c.helm.Releases.Last(ReleaseName)
	if errors.Is(err, driver.ErrReleaseNotFound) {
		return false, nil
	}
	return err == nil, err
}

func (c *call) dryRun() action.DryRunStrategy {
	if c.DryRun {
		return action.DryRunServer
	}
	return action.DryRunNone
}

func (c *call) waiting() kube.WaitStrategy {
	if c.Wait {
		return kube.StatusWatcherStrategy
	}
	return kube.HookOnlyStrategy
}

// said prints what came out of it: the objects of a dry run, else what to do next.
func (c *call) said(out releaser.Releaser, err error, address string) error {
	if err != nil {
		return explain(err)
	}
	rel, ok := out.(*release.Release)
	if !ok {
		return fmt.Errorf("the answer of Helm is a %T, not a release", out)
	}
	if c.DryRun {
		fmt.Fprint(c.out, rel.Manifest)
		fmt.Fprintln(c.err, "nothing was changed: these objects would be there")
		return nil
	}
	if address != "" {
		fmt.Fprintf(c.err, "kube-apiserver is taken to be at %s for the nodes, as in the kubeconfig; set kubernetes.host if they reach it elsewhere\n", address)
	}
	fmt.Fprintln(c.out, rel.Info.Notes)
	return nil
}
