package apiserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// StoreHandle is an opened store, as Run needs it.
type StoreHandle struct {
	Store    kvstore.Store   // writes, and reads of the leader
	Replicas []kvstore.Store // for following: replicas of the one store, tried in turn; nil = Store alone
	Text     string          // for status: "embedded etcd in DIR", "etcd at ENDPOINTS"
	Close    func()
}

// Config is what Run needs. Zero values of the last block have defaults.
type Config struct {
	Cluster  string
	ID       clustermesh.ID
	StateDir string // everything a restart must know; mode 0700

	// Source of Kubernetes objects.
	Source Source
	// SlicesGiven: the source delivers the EndpointSlices of all Services, and
	// somebody else runs the probes (Kubernetes does both): none are derived.
	SlicesGiven bool
	// PodPrefixes bound all pod addresses of the cluster; empty = the union of
	// the nodes' prefixes.
	PodPrefixes []netip.Prefix
	// TunnelPrefixes make the cluster a chained one: another CNI plugin gives pods
	// their addresses, anywhere in PodPrefixes; nodes have tunnel addresses of these,
	// by their numbers. Empty = nodes have pod prefixes of their own.
	TunnelPrefixes []netip.Prefix

	// Topology says which nodes other clusters' nodes have as WireGuard peers.
	Topology clustermesh.Topology

	// ReviewNode says which node a Kubernetes service-account token was issued to a
	// pod of; a *Refusal if it is not one that may register nodes. nil = such
	// tokens are not taken.
	ReviewNode func(ctx context.Context, token string) (node string, err error)

	// Open opens the store; it is called once, and closed when Run ends.
	Open func(ctx context.Context) (StoreHandle, error)

	Listen    string   // mesh port, host:port
	Advertise []string // host:port where peers and agents reach it
	Socket    string   // Unix socket of the admin calls
	Metrics   string   // host:port of /metrics; empty = none

	// CACert and CAKey are files of a supplied CA; empty = one is made at first
	// start. CARoots is a file of further trust anchors to announce: roots to come
	// or to go. The files are read again when they change.
	CACert, CAKey, CARoots string
	// CAKeeper keeps the CA instead of files. nil = files.
	CAKeeper CAKeeper
	// Reload has the files read again at once. nil = nobody asks.
	Reload <-chan os.Signal

	Version string
	Log     *slog.Logger // nil = discard
	// Multicluster has the exported services of all clusters followed: see Running.
	Multicluster bool
	// Parts run beside the rest, some on the leading replica alone.
	Parts []Part
	// Ready is called once, when the port and the admin socket answer.
	Ready func()

	// GossipRotation is how long the agents' gossip is encrypted by one key; 0 = for good.
	GossipRotation time.Duration

	LeaseTTL time.Duration // of the leader key; default 10 s
	// CAAnnounce is how long a new root is announced before the CA that has it
	// signs; default 5 min.
	CAAnnounce time.Duration
	Guard      time.Duration // least time between two lists that must agree on a mass delete; default 30 s
}

// Validate reports the first setting that cannot work, and fills in defaults.
func (c *Config) Validate() error {
	if err := clustermesh.ValidateClusterName(c.Cluster); err != nil {
		return fmt.Errorf("--cluster: %w", err)
	}
	if c.ID < 1 || c.ID > clustermesh.MaxID {
		return fmt.Errorf("--cluster-id: %d is not between 1 and %d; give a number no other cluster of the mesh has", c.ID, clustermesh.MaxID)
	}
	for _, need := range []struct{ flag, value, what string }{
		{"--state-dir", c.StateDir, "a directory that outlives restarts"},
		{"--listen", c.Listen, "host:port of the mesh port"},
		{"--socket", c.Socket, "the path of the admin socket"},
	} {
		if need.value == "" {
			return fmt.Errorf("%s is empty; give %s", need.flag, need.what)
		}
	}
	if c.Source == nil {
		return errors.New("no source of Kubernetes objects; give --manifests DIR or --kubernetes")
	}
	if c.Open == nil {
		return errors.New("no store")
	}
	if err := c.validatePrefixes(); err != nil {
		return err
	}
	if len(c.Advertise) == 0 {
		c.Advertise = []string{c.Listen}
	}
	if c.LeaseTTL == 0 {
		c.LeaseTTL = 10 * time.Second
	}
	if c.CAAnnounce == 0 {
		c.CAAnnounce = 5 * time.Minute
	}
	if c.Guard == 0 {
		c.Guard = 30 * time.Second
	}
	if c.GossipRotation < 0 {
		return fmt.Errorf("--gossip-key-rotation %s: give a duration such as 24h, or 0 for never", c.GossipRotation)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

func (c *Config) validatePrefixes() error {
	for i, p := range c.PodPrefixes {
		if p != p.Masked() {
			return fmt.Errorf("--pod-prefix %s has bits set beyond its length; write %s", p, p.Masked())
		}
		for _, q := range c.PodPrefixes[:i] {
			if p.Overlaps(q) {
				return fmt.Errorf("--pod-prefix %s and %s overlap; give each prefix once", q, p)
			}
		}
	}
	if len(c.TunnelPrefixes) > 0 && len(c.PodPrefixes) == 0 {
		return errors.New("--tunnel-prefix needs --pod-prefix: nothing else says which addresses the other CNI may give to pods")
	}
	families := map[bool]netip.Prefix{}
	for _, p := range c.TunnelPrefixes {
		if p != p.Masked() {
			return fmt.Errorf("--tunnel-prefix %s has bits set beyond its length; write %s", p, p.Masked())
		}
		if other, twice := families[p.Addr().Is4()]; twice {
			return fmt.Errorf("--tunnel-prefix %s and %s are of one family; give one of each", other, p)
		}
		families[p.Addr().Is4()] = p
		for _, q := range c.PodPrefixes {
			if p.Overlaps(q) {
				return fmt.Errorf("--tunnel-prefix %s overlaps --pod-prefix %s; give one that nobody else has addresses of", p, q)
			}
		}
	}
	for _, q := range c.PodPrefixes {
		if _, has := families[q.Addr().Is4()]; len(c.TunnelPrefixes) > 0 && !has {
			return fmt.Errorf("--tunnel-prefix has none of the family of --pod-prefix %s; give one of each family", q)
		}
	}
	return nil
}

// EtcdConfig says where an external etcd is; the files are PEM and may be empty.
type EtcdConfig struct {
	Endpoints     []string
	CA, Cert, Key string
}

// TLS reads the files; nil if none is given.
func (c EtcdConfig) TLS() (*tls.Config, error) { return etcdTLS(c) }
