package lab

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// Bundle copies what explains a lab's behaviour into dir: every process's log,
// each agent's status and tables, each cluster's records. No keys, no tokens.
func (l *Lab) Bundle(ctx context.Context, dir string) error {
	var errs []error
	put := func(name string, text []byte, err error) {
		if err != nil {
			text = append(text, "\nerror: "+err.Error()...)
		}
		path := filepath.Join(dir, name)
		errs = append(errs, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, text, 0o644))
	}
	for _, c := range l.clusters {
		logs, _ := filepath.Glob(filepath.Join(c.Dir, "*", "*.log"))
		for _, log := range logs {
			text, err := os.ReadFile(log)
			put(strings.TrimPrefix(log, l.Dir), text, err)
		}
		if admin, err := c.Admin(); err == nil {
			for _, scope := range []string{"export", "local"} {
				res, err := admin.Dump(ctx, &pb.DumpRequest{Prefix: "/tombolo/v1/" + scope + "/"})
				put(c.Name+"/records-"+scope+".txt", []byte(res.GetText()), err)
			}
			st, err := c.Status(ctx)
			put(c.Name+"/status.txt", []byte(st.String()), err)
		}
		for _, n := range c.Nodes {
			for _, path := range []string{"status", "services/default/checkout", "tables/services", "tables/slots", "tables/ips", "tables/ipprefixes",
				"tables/peers", "tables/routes", "tables/endpoints", "tables/node_health", "tables/cluster_health", "pods"} {
				text, err := n.Get(ctx, "/v1/"+path)
				put(filepath.Join(c.Name, n.Name, strings.ReplaceAll(path, "/", "-")+".txt"), text, err)
			}
		}
	}
	return errors.Join(errs...)
}
