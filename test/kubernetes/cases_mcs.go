package main

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

var mcsCases = []Case{
	{Name: "mcs", Claim: "a ServiceExport makes a ServiceImport in both clusters, reached at its derived address, and gone with the last export", Run: mcs},
	{Name: "clusterset-dns", Claim: "pods reach an exported service as NAME.NAMESPACE.svc.clusterset.local", Run: clustersetDNS},
}

const mcsVersion = "multicluster.x-k8s.io/v1beta1"

const serviceExport = `
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata: {name: web}
`

// imported waits for a ServiceImport and returns its addresses.
func (c *Cluster) imported(t *T, ns, name string) []string {
	var ips []string
	t.Within(settle, c.Name+": ServiceImport "+name, func() error {
		u, err := c.Get(t.ctx, mcsVersion, "ServiceImport", ns, name)
		if err != nil {
			return err
		}
		list, _, _ := nestedStrings(u.Object, "spec", "ips")
		if len(list) == 0 {
			return errors.New("it has no addresses")
		}
		ips = list
		return nil
	})
	return ips
}

func mcs(t *T) {
	ns := t.Namespace()
	a, b := t.Clusters[0], t.Clusters[1]
	for _, c := range t.Clusters {
		c.Service(t, ns, "web")
		c.Deploy(t, ns, "web", 1)
	}
	a.Apply(t, ns, serviceExport)
	t.Within(settle, "the export is Valid and Ready", func() error {
		u, err := a.Get(t.ctx, mcsVersion, "ServiceExport", ns, "web")
		if err != nil {
			return err
		}
		for _, kind := range []string{"Valid", "Ready"} {
			if status, reason := condition(u, kind); status != "True" {
				return fmt.Errorf("%s is %q (%s)", kind, status, reason)
			}
		}
		return nil
	})
	clients := map[*Cluster]*Pod{}
	for _, c := range t.Clusters {
		clients[c] = c.Clients(t, ns)[0]
		for _, ip := range c.imported(t, ns, "web") {
			clients[c].answeredBy(t, settle, ip, a.Name)
		}
	}
	b.Apply(t, ns, serviceExport)
	for _, c := range t.Clusters {
		for _, ip := range c.imported(t, ns, "web") {
			clients[c].answeredBy(t, settle, ip, a.Name, b.Name)
		}
	}
	for _, c := range t.Clusters {
		c.Delete(t, mcsVersion, "ServiceExport", ns, "web")
	}
	for _, c := range t.Clusters {
		t.Within(settle, c.Name+": the import goes with the last export", func() error {
			if _, err := c.Get(t.ctx, mcsVersion, "ServiceImport", ns, "web"); err == nil {
				return errors.New("it is there")
			}
			return nil
		})
	}
}

func clustersetDNS(t *T) {
	ns := t.Namespace()
	a, b := t.Clusters[0], t.Clusters[1]
	a.Service(t, ns, "web")
	a.Deploy(t, ns, "web", 1)
	a.Apply(t, ns, serviceExport)
	name := "web." + ns + ".svc.clusterset.local"
	for _, c := range []*Cluster{b, a} {
		ips := c.imported(t, ns, "web")
		client := c.Clients(t, ns)[0]
		took := t.Within(30*time.Second, client.String()+" resolves "+name, func() error {
			out, err := client.Exec(t.ctx, "resolve", name)
			if err == nil && !strings.Contains(out, ips[0]) {
				err = fmt.Errorf("%q is not %v", out, ips)
			}
			return err
		})
		t.Note("%s: resolved after %.1f s", c.Name, took.Seconds())
		t.Within(settle, client.String()+" reaches "+name, func() error {
			_, err := client.Ask(t.ctx, 1, "get", "http://"+name+"/")
			return err
		})
	}
}
