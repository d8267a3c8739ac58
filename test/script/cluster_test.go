package script

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
	"github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/kvtest"
)

// cluster is a mesh API server with its folder of manifests and its store.
type cluster struct {
	w        *world
	name     string
	id       clustermesh.ID
	prefixes []netip.Prefix
	dir      string // manifests
	listen   string
	socket   string

	memory *kvstore.Memory // behind faulty, behind storeDoor
	faulty *kvtest.Faulty
	isCut  bool

	storeDoor *door // to the store, for the mesh API server
	portDoor  *door // to the mesh port, for agents

	backup []kvstore.KV
	copyOf uint64 // store the backup is of

	nodes map[string]*node
	peers map[string]bool // as joined or removed last
	marks int             // rounds of settle
	stale bool            // others do not believe it: they are not waited for
	stop  func() error
}

func newCluster(w *world, name string) *cluster {
	c := &cluster{w: w, name: name, dir: filepath.Join(w.dir, name), nodes: map[string]*node{}, peers: map[string]bool{}, storeDoor: newDoor(), portDoor: newDoor()}
	c.listen = w.listen(c)
	c.socket = filepath.Join(w.dir, name+".sock")
	c.memory = kvstore.NewMemory(kvstore.MemoryOptions{})
	c.faulty = kvtest.NewFaulty(c.memory, 1, kvtest.Faults{})
	return c
}

func (c *cluster) store() *kvstore.Memory { return c.memory }

func (c *cluster) start() error {
	if c.stop != nil {
		return errors.New("it runs")
	}
	state := filepath.Join(c.w.dir, "state-"+c.name)
	if err := errors.Join(os.MkdirAll(state, 0o700), os.MkdirAll(c.dir, 0o755)); err != nil {
		return err
	}
	ready := make(chan struct{})
	cfg := apiserver.Config{
		Cluster: c.name, ID: c.id, StateDir: state, PodPrefixes: c.prefixes, Version: "v1.0.0",
		Source: apiserver.NewFolder(apiserver.FolderConfig{Dir: c.dir, Cache: filepath.Join(state, "manifests"), Settle: time.Nanosecond}),
		Open: func(context.Context) (apiserver.StoreHandle, error) {
			return apiserver.StoreHandle{Store: gate{c.faulty, c.storeDoor}, Text: "memory"}, nil
		},
		Listen: c.listen, Socket: c.socket, Ready: func() { close(ready) }, Guard: time.Second,
	}
	ctx, cancel := context.WithCancel(c.w.ctx)
	done := make(chan error, 1)
	go func() { done <- apiserver.Run(ctx, cfg) }()
	select {
	case <-ready:
	case err := <-done:
		cancel()
		return err
	}
	c.stop = func() error { cancel(); return <-done }
	c.portDoor.set(true)
	return nil
}

func (c *cluster) halt() error {
	if c.stop == nil {
		return nil
	}
	c.portDoor.set(false)
	err := c.stop()
	c.stop = nil
	return err
}

func (c *cluster) canPublish() bool { return c.stop != nil && !c.isCut }

func (c *cluster) cut() error {
	c.isCut = true
	c.storeDoor.set(false)
	c.faulty.Break(errors.New("the store does not answer"))
	return nil
}

func (c *cluster) heal() error {
	c.isCut = false
	c.faulty.Break(nil)
	c.storeDoor.set(true)
	return nil
}

func (c *cluster) replace(fresh *kvstore.Memory) {
	old := c.memory
	c.memory = fresh
	c.faulty.Swap(fresh)
	old.Close()
}

func (c *cluster) wipe() error {
	c.replace(kvstore.NewMemory(kvstore.MemoryOptions{}))
	return nil
}

func (c *cluster) save() error {
	if err := c.w.settle(); err != nil {
		return err
	}
	c.backup = nil
	at, err := c.memory.List(context.Background(), "", kvstore.Position{}, func(kvs []kvstore.KV) error {
		for _, kv := range kvs {
			if kv.Lease == 0 {
				c.backup = append(c.backup, kvstore.KV{Key: kv.Key, Value: bytes.Clone(kv.Value)})
			}
		}
		return nil
	})
	c.copyOf = at.StoreID
	return err
}

// restore puts the backup in the store's place: the same store ID, and revisions
// that count again from an older one.
func (c *cluster) restore() error {
	fresh := kvstore.NewMemory(kvstore.MemoryOptions{StoreID: c.copyOf})
	for part := range slices.Chunk(c.backup, kvstore.MaxOps) {
		var ops []kvstore.Op
		for _, kv := range part {
			ops = append(ops, kvstore.Put(kv.Key, kv.Value, 0))
		}
		if _, err := fresh.Commit(context.Background(), ops...); err != nil {
			return err
		}
	}
	c.replace(fresh)
	return nil
}

// admin makes a call on the admin socket.
func (c *cluster) admin(call func(context.Context, pb.AdminClient) error) error {
	conn, err := grpc.NewClient("unix:"+c.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(c.w.ctx, limit)
	defer cancel()
	return call(ctx, pb.NewAdminClient(conn))
}

// join makes c join the mesh of a.
func (c *cluster) join(a *cluster) error {
	// A cluster says its prefixes once it has published.
	if err := c.w.settle(); err != nil {
		return err
	}
	err := a.admin(func(ctx context.Context, at pb.AdminClient) error {
		t, err := at.Invite(ctx, &pb.InviteRequest{})
		if err != nil {
			return err
		}
		return c.admin(func(ctx context.Context, at pb.AdminClient) error {
			_, err := at.JoinMesh(ctx, &pb.JoinMeshRequest{Token: t.Token})
			return err
		})
	})
	return errors.Join(err, c.w.readPeers())
}

func (c *cluster) remove(peer string) error {
	err := c.admin(func(ctx context.Context, at pb.AdminClient) error {
		_, err := at.RemovePeer(ctx, &pb.RemovePeerRequest{Cluster: peer})
		return err
	})
	return errors.Join(err, c.w.readPeers())
}

// problems are those the mesh API server names, without when.
func (c *cluster) problems() (lines []string, err error) {
	err = c.admin(func(ctx context.Context, at pb.AdminClient) error {
		st, err := at.Status(ctx, &pb.StatusRequest{})
		for _, p := range st.GetProblems() {
			if strings.Contains(p.Object, "settle/") {
				continue
			}
			lines = append(lines, fmt.Sprintf("%s: %s: %s; %s\n", p.Object, p.What, p.Why, p.Fix))
		}
		return err
	})
	return lines, err
}

func (c *cluster) apply(file, text string) error {
	path := filepath.Join(c.dir, file)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return replaceFile(path, text)
}

// read lists records of the store under a prefix below Root.
func (c *cluster) read(prefix string) (map[clustermesh.Key]clustermesh.Record, error) {
	records := map[clustermesh.Key]clustermesh.Record{}
	_, err := c.memory.List(context.Background(), clustermesh.Root+prefix, kvstore.Position{}, func(kvs []kvstore.KV) error {
		for _, kv := range kvs {
			key, err := clustermesh.ParseKey(kv.Key)
			if err != nil {
				continue // private
			}
			if records[key], err = clustermesh.Decode(key, kv.Value); err != nil {
				return err
			}
		}
		return nil
	})
	return records, err
}

// records are those under a prefix as text, without what differs from run to run
// and without what settle put there.
func (c *cluster) records(prefix string) (string, error) {
	records, err := c.read(prefix)
	for key, r := range records {
		switch r := r.(type) {
		case *clustermesh.Cluster:
			r.Incarnation, r.CABundle = 0, nil
		case *clustermesh.Peer:
			r.Joined, r.CABundle = time.Time{}, nil
		}
		if strings.HasPrefix(key.Name, "settle/") {
			delete(records, key)
		}
	}
	return c.w.scrub(clustermesh.Dump(records)), err
}

const markFile = "settle.yaml"

const markText = `
apiVersion: v1
kind: Service
metadata: {name: global, namespace: settle, annotations: {tombolo.io/global: "true", tombolo.io/weight: "%[1]d"}}
spec: {clusterIP: None, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: local, namespace: settle, annotations: {tombolo.io/weight: "%[1]d"}}
spec: {clusterIP: None, ports: [{port: 80}]}
`

// mark changes what settle watches, and waits until the store has it.
func (c *cluster) mark() error {
	c.marks++
	if err := c.apply(markFile, fmt.Sprintf(markText, c.marks)); err != nil {
		return err
	}
	return eventually(func() error { return errors.Join(c.marked("export", "global"), c.marked("local", "local")) })
}

func (c *cluster) marked(scope, name string) error {
	records, err := c.read(scope + "/" + c.name + "/service/settle/" + name)
	if err != nil {
		return err
	}
	for _, r := range records {
		if s := r.(*clustermesh.Service); int(s.Weight) == c.marks {
			return nil
		}
	}
	return fmt.Errorf("service settle/%s of round %d has not arrived in the store", name, c.marks)
}

// moved waits until no service is in two scopes: one that changes its scope is in
// both for a second, so that readers never find it in neither.
func (c *cluster) moved() error {
	return eventually(func() error {
		records, err := c.read("")
		for key := range records {
			twin := key
			twin.Scope = clustermesh.ScopeExport
			if key.Scope == clustermesh.ScopeLocal && records[twin] != nil {
				return fmt.Errorf("%s is in two scopes", key)
			}
		}
		return err
	})
}

// hasNode says whether the store has a node's registration.
func (c *cluster) hasNode(n *node) error {
	records, err := c.read("export/" + c.name + "/node/" + n.name)
	for _, r := range records {
		if r.(*clustermesh.Node).WireGuardKey == n.self.WireGuardKey {
			return nil
		}
	}
	return errors.Join(err, fmt.Errorf("node %s has not arrived in the store", n.name))
}

// hasPod says whether the store has what was registered of a pod: its addresses
// and, where a service has them, whether they are ready.
func (c *cluster) hasPod(owner string, ready, gone bool, addrs []netip.Addr) error {
	missing := map[netip.Addr]bool{}
	for _, a := range addrs {
		missing[a] = true
	}
	records, err := c.read("")
	for _, r := range records {
		switch r := r.(type) {
		case *clustermesh.Address:
			if r.Owner == owner && gone {
				return fmt.Errorf("the address of %s is still in the store", owner)
			}
			delete(missing, r.Name.Prefix.Addr())
		case *clustermesh.EndpointSlice:
			for _, e := range r.Endpoints {
				if slices.Contains(addrs, e.Address) && (gone || e.Ready != ready && !e.Terminating) {
					return fmt.Errorf("the readiness of %s has not arrived in the store", owner)
				}
			}
		}
	}
	if len(missing) > 0 && !gone {
		return fmt.Errorf("addresses of %s have not arrived in the store", owner)
	}
	return err
}
