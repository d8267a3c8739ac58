package policy

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

func labels(kv ...string) []clustermesh.Label {
	var out []clustermesh.Label
	for i := 0; i < len(kv); i += 2 {
		out = append(out, clustermesh.Label{Key: kv[i], Value: kv[i+1]})
	}
	return out
}

func TestSmoke(t *testing.T) {
	e := New(Options{Cluster: 1})
	web, db := clustermesh.MakeIdentity(1, 1), clustermesh.MakeIdentity(1, 2)
	e.SetIdentity(web, labels("app", "web", "namespace:kubernetes.io/metadata.name", "shop", "tombolo.io/cluster", "one", "tombolo.io/namespace", "shop"))
	e.SetIdentity(db, labels("app", "db", "namespace:kubernetes.io/metadata.name", "shop", "tombolo.io/cluster", "one", "tombolo.io/namespace", "shop"))
	e.SetPod("db-0", Pod{Namespace: "shop", Identity: db})
	e.SetPolicy(Name{"shop", "db"}, []byte(`{"metadata":{"name":"db","namespace":"shop"},"spec":{"podSelector":{"matchLabels":{"app":"db"}},
		"ingress":[{"from":[{"podSelector":{"matchLabels":{"app":"web"}}},{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.1.0.0/16"]}}],"ports":[{"port":5432,"endPort":5433}]},{"ports":[{"port":9100}]}]}}`))
	tables := NewTables()
	e.Apply(tables)
	var b bytes.Buffer
	e.WriteText(&b)
	tables.WriteText(&b)
	t.Log(b.String())
	s := tables.Pods["db-0"]
	t.Log(tables.Lookup(s, Ingress, web, netip.Addr{}, clustermesh.TCP, 5432))
	t.Log(e.Explain(Query{From: Party{Identity: web, Pod: true}, To: Party{Identity: db, Pod: true}, Proto: clustermesh.TCP, Port: 5432}))
}
