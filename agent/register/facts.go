package register

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// Facts is what a node knows of its cluster and of its own place in it. It is
// kept on disk: a node that boots with no mesh API server in reach works by it.
type Facts struct {
	Cluster         string         `json:"cluster"`
	ClusterID       clustermesh.ID `json:"clusterID"`
	MeshAddresses   []string       `json:"meshAddresses"` // host:port, in order of preference
	Bundle          string         `json:"bundle"`        // CA bundle, PEM
	Node            string         `json:"node"`
	Number          uint16         `json:"number"`
	PodPrefixes     []netip.Prefix `json:"podPrefixes"`
	TunnelAddresses []netip.Addr   `json:"tunnelAddresses"` // one in each pod prefix
	// GossipKeys are what the cluster's agents gossip by, the one to encrypt by first.
	GossipKeys [][]byte `json:"gossipKeys,omitempty"`
}

const gossipKeySize = 32

// gossipKeyIDs name the keys without telling them: the first 8 bytes of their
// SHA-256.
func (f Facts) gossipKeyIDs() (ids []uint64) {
	for _, k := range f.GossipKeys {
		sum := sha256.Sum256(k)
		ids = append(ids, binary.BigEndian.Uint64(sum[:]))
	}
	return ids
}

// ReadFacts reads what a state directory holds; ok is false if the node was
// never registered from there.
func ReadFacts(stateDir string) (f Facts, ok bool, err error) {
	data, err := os.ReadFile(factsFile(stateDir))
	if errors.Is(err, os.ErrNotExist) {
		return f, false, nil
	}
	if err != nil {
		return f, false, fmt.Errorf("read cluster facts: %w", err)
	}
	if err := json.Unmarshal(data, &f); err != nil {
		return Facts{}, false, fmt.Errorf("cluster facts %s: %w", factsFile(stateDir), err)
	}
	if err := f.check(); err != nil {
		return Facts{}, false, fmt.Errorf("cluster facts %s: %w", factsFile(stateDir), err)
	}
	return f, true, nil
}

func factsFile(stateDir string) string { return filepath.Join(stateDir, "cluster.json") }

func (f Facts) write(stateDir string) error {
	data, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		return err
	}
	if err = os.MkdirAll(stateDir, 0o700); err == nil {
		err = certs.WriteFile(factsFile(stateDir), append(data, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("keep cluster facts: %w", err)
	}
	return nil
}

func (f Facts) equal(o Facts) bool { return reflect.DeepEqual(f, o) }

// check refuses facts a node cannot work by.
func (f Facts) check() error {
	if err := certs.CheckCluster(f.Cluster); err != nil {
		return err
	}
	if f.ClusterID == 0 || f.ClusterID > clustermesh.MaxID {
		return fmt.Errorf("cluster ID %d is not within 1–%d", f.ClusterID, clustermesh.MaxID)
	}
	if len(f.MeshAddresses) == 0 {
		return errors.New("no address of a mesh API server")
	}
	if _, err := certs.ParseBundle([]byte(f.Bundle)); err != nil {
		return fmt.Errorf("CA bundle: %w", err)
	}
	for _, k := range f.GossipKeys {
		if len(k) != gossipKeySize {
			return fmt.Errorf("a gossip key of %d bytes, expected %d", len(k), gossipKeySize)
		}
	}
	if f.Node == "" || f.Number == 0 {
		return errors.New("no node name or number")
	}
	if len(f.PodPrefixes) == 0 {
		return errors.New("no pod prefix: give the node a podCIDR in its manifest, or start the mesh API server with --pod-prefix")
	}
	for _, a := range f.TunnelAddresses {
		inside := false
		for _, p := range f.PodPrefixes {
			inside = inside || p.Contains(a)
		}
		if !inside {
			return fmt.Errorf("tunnel address %s is in none of the pod prefixes %v", a, f.PodPrefixes)
		}
	}
	return nil
}

// factsFrom reads an answer. What it leaves out is kept from old.
func factsFrom(r *pb.RegisterNodeResponse, name string, old Facts) (Facts, error) {
	f := old
	if c := r.GetCluster(); c != nil {
		f.Cluster, f.ClusterID = c.Name, clustermesh.ID(c.Id)
		if len(c.MeshAddresses) > 0 {
			f.MeshAddresses = c.MeshAddresses
		}
		if len(c.CaBundle) > 0 {
			f.Bundle = string(c.CaBundle)
		}
	}
	if len(r.GetBundle()) > 0 {
		f.Bundle = string(r.Bundle)
	}
	if len(r.GetGossipKeys()) > 0 {
		f.GossipKeys = r.GossipKeys
	}
	n := r.GetNode()
	if n == nil {
		return f, errors.New("the answer has no node")
	}
	f.Node, f.Number = name, uint16(n.Number)
	f.PodPrefixes, f.TunnelAddresses = nil, nil
	for _, p := range n.PodPrefixes {
		a, ok := netip.AddrFromSlice(p.Address)
		prefix := netip.PrefixFrom(a, int(p.Bits))
		if !ok || !prefix.IsValid() {
			return f, errors.New("the answer has a malformed pod prefix")
		}
		f.PodPrefixes = append(f.PodPrefixes, prefix.Masked())
	}
	for _, raw := range n.TunnelAddresses {
		a, ok := netip.AddrFromSlice(raw)
		if !ok {
			return f, errors.New("the answer has a malformed tunnel address")
		}
		f.TunnelAddresses = append(f.TunnelAddresses, a)
	}
	return f, f.check()
}
