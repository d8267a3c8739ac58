package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// peerChild is a mesh port in a process of its own, the same code as a mesh API
// server's, in front of a large synthetic cluster. It talks on its standard
// input and output, a line each:
//
//	join TOKEN      → joined
//	bytes           → how many bytes it has sent on its listener so far
//	flood|lie|unread RATE, quiet → done; see writer
func peerChild(name, id, listen, size string) error {
	number, err := strconv.Atoi(id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	dir, err := os.MkdirTemp("", "tombolo-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	store := kvstore.NewMemory(kvstore.MemoryOptions{})
	own := clustermesh.Cluster{Name: name, ID: clustermesh.ID(number), Incarnation: 1, MeshAddresses: []string{listen},
		PodPrefixes: []netip.Prefix{podPrefix(clustermesh.ID(number))}, Version: "bench"}
	port, ca, err := newPort(dir, store, own)
	if err != nil {
		return err
	}
	own.CABundle = ca.Bundle()
	s := scales[size]
	records, err := dataset(name, own.ID, s)
	if err != nil {
		return err
	}
	kvs, err := encode(name, append(records, &own))
	if err != nil {
		return err
	}
	if err := putAll(ctx, store, kvs); err != nil {
		return err
	}
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	counted := &countingListener{Listener: ln}
	go port.Run(ctx, counted)
	w := &writer{store: store, own: own, size: s}
	defer func() { _ = w.do(ctx, "quiet", "") }()
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		word, arg, _ := strings.Cut(in.Text(), " ")
		switch word {
		case "join":
			if _, err := port.JoinMesh(ctx, arg, false); err != nil {
				return err
			}
			fmt.Println("joined")
		case "bytes":
			fmt.Println(counted.sent.Load())
		case "flood", "lie", "unread", "quiet":
			if err := w.do(ctx, word, arg); err != nil {
				return err
			}
			fmt.Println("done")
		}
	}
	return nil
}

func newPort(dir string, store *kvstore.Memory, own clustermesh.Cluster) (*apiserver.Port, *certs.CA, error) {
	ca, err := certs.OpenCA(dir, own.Name, now())
	if err != nil {
		return nil, nil, err
	}
	leaf, err := certs.NewLeaf("", certs.APIServer(own.Name), nil)
	if err != nil {
		return nil, nil, err
	}
	port, err := apiserver.NewPort(apiserver.PortConfig{Store: store, Cache: store, CA: ca, Leaf: leaf, Bundles: certs.NewBundles(),
		Registrar: noRegistrar{}, Own: func() clustermesh.Cluster { return own }})
	return port, ca, err
}

// noRegistrar: a synthetic cluster has no nodes that could register.
type noRegistrar struct{}

func (noRegistrar) RegisterNode(context.Context, apiserver.NodeRegistration) (*clustermesh.Node, error) {
	return nil, errors.New("a synthetic cluster takes no nodes")
}

func (noRegistrar) RegisterEndpoint(context.Context, apiserver.EndpointRegistration) (clustermesh.Identity, error) {
	return 0, errors.New("a synthetic cluster takes no endpoints")
}

// countingListener counts the bytes that its connections send.
type countingListener struct {
	net.Listener
	sent atomic.Int64
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &countingConn{c, &l.sent}, nil
}

type countingConn struct {
	net.Conn
	sent *atomic.Int64
}

func (c *countingConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.sent.Add(int64(n))
	return n, err
}
