package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/linux"
)

const (
	podMTU     = 1500
	serverPort = 8080
	frontPort  = 80
)

var (
	podPrefix     = netip.MustParsePrefix("10.1.0.0/24")
	tunnelAddress = netip.MustParseAddr("10.1.0.1")
)

// world is one node with two pods, connected as the agent connects pods:
//
//	client pod ── veth ── node ── veth ── server pod
//	  /32, gateway 169.254.1.1         /32, gateway 169.254.1.1
//
// Every variant has one of its own, so that all are there at the same time and
// can be measured in turn.
type world struct {
	node, client, server *space
	pods                 *linux.Pods
	clientPod, serverPod agent.LocalPod
}

// newWorld makes it; dir is for the agent's state.
func newWorld(dir string) (*world, error) {
	w := new(world)
	if err := w.make(dir); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func (w *world) make(dir string) (err error) {
	for _, s := range []**space{&w.node, &w.client, &w.server} {
		if *s, err = newSpace(); err != nil {
			return err
		}
	}
	err = w.node.in(func() error {
		if err := loopbackUp(); err != nil {
			return err
		}
		w.pods, err = linux.OpenPods(linux.PodsConfig{StateDir: dir})
		return err
	})
	if err != nil {
		return err
	}
	err = w.pods.SetNetwork(linux.NodeNetwork{PodPrefixes: []netip.Prefix{podPrefix}, TunnelAddresses: []netip.Addr{tunnelAddress}, PodMTU: podMTU})
	if err != nil {
		return err
	}
	for name, s := range map[string]*space{"client": w.client, "server": w.server} {
		if err := w.connect(name, s); err != nil {
			return fmt.Errorf("connect the %s pod: %w", name, err)
		}
	}
	list, err := w.pods.List(context.Background())
	if err != nil {
		return err
	}
	for _, p := range list {
		switch p.UID {
		case "client":
			w.clientPod = p
		case "server":
			w.serverPod = p
		}
	}
	if len(w.clientPod.Addresses) == 0 || len(w.serverPod.Addresses) == 0 {
		return errors.New("a pod has no address")
	}
	return nil
}

func (w *world) connect(uid string, s *space) error {
	_, err := w.pods.Add(context.Background(), agent.PodRequest{UID: uid, Namespace: "bench", Name: uid, ContainerID: uid, Netns: s.path(), IfName: "eth0"})
	if err != nil {
		return err
	}
	return s.sysctl(map[string]string{
		// With an offset of its own for each destination address, connections by
		// one frontend would look older than those by another to the backend they
		// share, and be refused while it remembers those (PAWS).
		"ipv4.tcp_timestamps": "2",
		"ipv4.tcp_tw_reuse":   "1",
	})
}

func (w *world) close() {
	if w.pods != nil {
		w.pods.Close()
	}
	for _, s := range []*space{w.server, w.client, w.node} {
		if s != nil {
			s.close()
		}
	}
}

// backend is where the server pod answers.
func (w *world) backend() netip.AddrPort {
	return netip.AddrPortFrom(w.serverPod.Addresses[0], serverPort)
}

// frontend of service i: below 172.20.0.0/14.
func frontend(i int) netip.AddrPort {
	i++ // 172.20.0.0 itself stays free
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 20 + byte(i>>16), byte(i >> 8), byte(i)}), frontPort)
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// sub makes a folder of the run's.
func sub(dir, name string) (string, error) {
	path := dir + "/" + name
	return path, os.Mkdir(path, 0o700)
}
