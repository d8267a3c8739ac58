package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"net/netip"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/linux"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// memoryConnector gives the agent a store in the process.
type memoryConnector struct{ store kvstore.Store }

func (m memoryConnector) Stores(context.Context, string, *clustermesh.Peer) ([]kvstore.Store, func(), error) {
	return []kvstore.Store{m.store}, nil, nil
}

// ownCluster is a store with what a cluster of many services says.
func ownCluster(ctx context.Context, s scale) (kvstore.Store, string, error) {
	const name = "aws"
	records, err := dataset(name, 1, s)
	if err != nil {
		return nil, "", err
	}
	kvs, err := encode(name, append(records, &clustermesh.Cluster{Name: name, ID: 1, Incarnation: 1,
		PodPrefixes: []netip.Prefix{podPrefix(1)}, Version: "bench"}))
	if err != nil {
		return nil, "", err
	}
	store := kvstore.NewMemory(kvstore.MemoryOptions{})
	return store, records[0].(*clustermesh.Node).Name, putAll(ctx, store, kvs)
}

// wholeAgent times an agent from its start until services and slots of all
// records are in real maps: list, decode, admit, view, merge, rows, maps. The
// other tables are in memory.
func wholeAgent(ctx context.Context, store kvstore.Store, node string, services int) (time.Duration, error) {
	objs, _, cleanup, err := kernel()
	if err != nil {
		return 0, err
	}
	defer cleanup()
	t, real := agent.NewFakes(), linux.NewTables(objs.Maps, new(linux.Device))
	t.Slots, t.Services = real.Slots, real.Services
	a, err := agent.New(agent.Config{Cluster: "aws", ClusterID: 1, Node: node, Connector: memoryConnector{store}, Resync: -1}, t)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	done := make(chan struct{})
	begin := time.Now()
	go func() {
		defer close(done)
		a.Run(ctx)
	}()
	defer func() { cancel(); <-done }()
	for ctx.Err() == nil {
		time.Sleep(50 * time.Millisecond)
		w := httptest.NewRecorder()
		a.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/v1/status", nil))
		var st agent.Status
		if err := json.Unmarshal(w.Body.Bytes(), &st); err != nil {
			return 0, err
		}
		if st.Settled != nil && st.Services == services {
			return st.Settled.Sub(begin), nil
		}
	}
	return 0, fmt.Errorf("the agent did not settle within a minute")
}
