package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"reflect"
)

// CNIDir is where Debian's containernetworking-plugins puts the reference plugins.
const CNIDir = "/usr/lib/cni"

// Chain has another CNI plugin connect the cluster's pods, and Tombolo's come after
// it. plugin is that one's part of the network configuration for a pod; its addresses
// are of ChainedPrefixes, wherever in them. To be called before anything is started.
func (c *Cluster) Chain(plugin func(*Pod) Object) error {
	c.chain = plugin
	pods, tunnels := c.ChainedPrefixes()
	for i := range pods {
		c.extra = append(c.extra, "--pod-prefix", pods[i].String(), "--tunnel-prefix", tunnels[i].String())
	}
	for _, n := range c.Nodes {
		n.AgentFlags = append(n.AgentFlags, "--cni-mode", "chained")
		if err := c.Apply("node-"+n.Name, Manifest(NodeObject(n.Name, nil))); err != nil {
			return err
		}
	}
	return nil
}

// ChainedPrefixes are where a chained cluster's pods, and its nodes' tunnels, have
// their addresses, by family.
func (c *Cluster) ChainedPrefixes() (pods, tunnels []netip.Prefix) {
	id := byte(c.ID)
	return []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, id, 0, 0}), 16), netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0, 0, id}), 48)},
		[]netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 200 + id, 0, 0}), 24), netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0, 0xff, id}), 64)}
}

// chained runs the whole chain for a pod, in the order of the command.
func (p *Pod) chained(ctx context.Context, command string) (result string, err error) {
	other := p.node.cluster.chain(p)
	own := Object{"type": "tombolo-cni", "socket": p.node.Socket(), "deletions": filepath.Join(p.node.stateDir(), "deletions"), "chained": true}
	if command == "DEL" {
		if _, err := p.plugin(ctx, command, own, p.prev); err != nil {
			return "", err
		}
		return p.plugin(ctx, command, other, p.prev)
	}
	result, err = p.plugin(ctx, command, other, p.prev)
	if err != nil {
		return "", err
	}
	if command == "ADD" {
		p.prev = json.RawMessage(result)
	}
	last, err := p.plugin(ctx, command, own, p.prev)
	if err != nil || command != "ADD" {
		return last, err
	}
	if !sameResult(result, last) {
		return "", fmt.Errorf("the other plugin's result %s became %s", result, last)
	}
	return last, nil
}

// plugin runs one plugin of a chain.
func (p *Pod) plugin(ctx context.Context, command string, conf Object, prev json.RawMessage) (string, error) {
	conf["cniVersion"], conf["name"] = "1.0.0", "other"
	if prev != nil && (command != "ADD" || conf["type"] == "tombolo-cni") {
		conf["prevResult"] = prev
	}
	text, err := json.Marshal(conf)
	if err != nil {
		return "", err
	}
	dir := CNIDir
	if conf["type"] == "tombolo-cni" {
		dir = p.node.cluster.lab.opts.BinDir
	}
	return p.node.host.run(ctx, p.cniEnv(command), string(text), filepath.Join(dir, fmt.Sprint(conf["type"])))
}

// sameResult compares two results; an empty dns says what none says.
func sameResult(a, b string) bool {
	var x, y map[string]any
	if json.Unmarshal([]byte(a), &x) != nil || json.Unmarshal([]byte(b), &y) != nil {
		return false
	}
	for _, m := range []map[string]any{x, y} {
		if dns, ok := m["dns"].(map[string]any); ok && len(dns) == 0 {
			delete(m, "dns")
		}
	}
	return reflect.DeepEqual(x, y)
}
