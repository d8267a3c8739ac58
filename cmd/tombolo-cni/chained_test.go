package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/tombolo-mesh/tombolo/agent/cni"
	"github.com/tombolo-mesh/tombolo/agent/linux"
)

// reference is where Debian has the reference plugins.
const reference = "/usr/lib/cni"

func chainedPods(t *testing.T, node string) *linux.Pods {
	t.Helper()
	var p *linux.Pods
	err := linux.InNetns("/run/netns/"+node, func() (err error) {
		if p, err = linux.OpenPods(linux.PodsConfig{StateDir: t.TempDir(), Chained: true}); err != nil {
			return err
		}
		tunnel := netip.MustParseAddr("10.255.0.1")
		return p.SetNetwork(linux.NodeNetwork{TunnelAddresses: []netip.Addr{tunnel}, PodPrefixes: []netip.Prefix{netip.PrefixFrom(tunnel, 32)}})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// The whole specification by the library that runtimes use, with the configuration
// that the agent makes of another CNI's: ptp, bridge, their IPAM, and a plugin behind.
// It is of version 1.0.0, the newest that Debian's reference plugins know.
func TestChain(t *testing.T) {
	if _, err := os.Stat(filepath.Join(reference, "ptp")); err != nil {
		t.Skipf("needs the reference CNI plugins: %v (Debian: containernetworking-plugins)", err)
	}
	for name, plugins := range map[string]string{
		"ptp, host-local": `{"type":"ptp","ipam":{"type":"host-local","dataDir":"DIR","ranges":[[{"subnet":"10.7.9.0/24"}],[{"subnet":"fd00:7:9::/64"}]],"routes":[{"dst":"0.0.0.0/0"}]}}`,
		"ptp, static":     `{"type":"ptp","ipam":{"type":"static","addresses":[{"address":"10.7.33.44/16","gateway":"10.7.0.1"}]}},{"type":"tuning","sysctl":{"net.ipv4.conf.eth0.arp_notify":"1"}}`,
		"bridge":          `{"type":"bridge","bridge":"br0","isGateway":true,"ipam":{"type":"host-local","dataDir":"DIR","subnet":"10.7.10.0/24"}}`,
	} {
		t.Run(name, func(t *testing.T) { testChain(t, strings.ReplaceAll(plugins, "DIR", t.TempDir())) })
	}
}

func testChain(t *testing.T, plugins string) {
	ctx := t.Context()
	node, pod := netns(t), netns(t)
	pods := chainedPods(t, node)
	socket := serveAgentOf(t, pods)
	other := `{"cniVersion":"1.0.0","name":"other","plugins":[` + plugins + `]}`
	own := cni.Own{Type: cni.Plugin, Socket: socket, Deletions: deletions(socket), Chained: true}
	text, err := cni.Chain([]byte(other), own)
	if err != nil {
		t.Fatal(err)
	}
	chain, alone := confList(t, string(text)), confList(t, other)
	runtime := runtimeWith(t)
	runtime.Path = append(runtime.Path, reference)
	in := func(f func() error) error { return linux.InNetns("/run/netns/"+node, f) }
	if err := in(func() error { return runtime.GetStatusNetworkList(ctx, chain) }); err != nil {
		t.Log("at first:", err) // until the agent's own cluster has spoken
	}
	var before, with types.Result
	err = in(func() (err error) {
		if before, err = runtime.AddNetworkList(ctx, alone, sandbox("c0", pod)); err != nil {
			return err
		}
		return runtime.DelNetworkList(ctx, alone, sandbox("c0", pod))
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time after a DEL
		err = in(func() (err error) {
			with, err = runtime.AddNetworkList(ctx, chain, sandbox("c1", pod))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if !sameShape(t, before, with) {
			t.Errorf("the result is another:\n%v\n%v", before, with)
		}
		list, _ := pods.List(ctx)
		if len(list) != 1 || list[0].UID != "uid-c1" || list[0].IfIndex == 0 || len(list[0].Addresses) == 0 {
			t.Fatalf("%+v", list)
		}
		if err := in(func() error { return runtime.CheckNetworkList(ctx, chain, sandbox("c1", pod)) }); err != nil {
			t.Error(err)
		}
		for _, a := range list[0].Addresses { // the kubelet's probes go this way
			if out, err := exec.Command("ip", "netns", "exec", node, "ping", "-c", "1", "-W", "2", a.String()).CombinedOutput(); err != nil && a.Is4() {
				t.Errorf("the host does not reach %s: %v: %s", a, err, out)
			}
		}
		if err := in(func() error { return runtime.DelNetworkList(ctx, chain, sandbox("c1", pod)) }); err != nil {
			t.Fatal(err)
		}
		if list, _ := pods.List(ctx); len(list) != 0 {
			t.Errorf("left: %+v", list)
		}
		if out, err := exec.Command("ip", "-n", pod, "link", "show", "eth0").CombinedOutput(); err == nil {
			t.Errorf("the other plugin was not asked: %s", out)
		}
	}
	// A pod from before: it is nobody's here, and ends as it began.
	err = in(func() (err error) {
		if _, err = runtime.AddNetworkList(ctx, alone, sandbox("c2", pod)); err != nil {
			return err
		}
		if err := runtime.CheckNetworkList(ctx, chain, sandbox("c2", pod)); err == nil || !strings.Contains(err.Error(), "is not known on this node") {
			return errors.New("CHECK of a pod from before passed")
		}
		return runtime.DelNetworkList(ctx, chain, sandbox("c2", pod))
	})
	if err != nil {
		t.Error(err)
	}
	// GC: what the runtime does not list.
	err = in(func() (err error) {
		if _, err = runtime.AddNetworkList(ctx, chain, sandbox("c3", pod)); err != nil {
			return err
		}
		return runtime.GCNetworkList(ctx, chain, &libcni.GCArgs{})
	})
	if list, _ := pods.List(ctx); err != nil || len(list) != 0 {
		t.Errorf("%v, left after GC: %+v", err, list)
	}
}

// sameShape compares results but for what is drawn anew each time.
func sameShape(t *testing.T, a, b types.Result) bool {
	t.Helper()
	var both [2]map[string]any
	for i, r := range []types.Result{a, b} {
		text, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &both[i]); err != nil {
			t.Fatal(err)
		}
		for _, x := range both[i]["interfaces"].([]any) {
			delete(x.(map[string]any), "mac")
			if name, _ := x.(map[string]any)["name"].(string); strings.HasPrefix(name, "veth") {
				delete(x.(map[string]any), "name")
			}
		}
		for _, x := range both[i]["ips"].([]any) {
			delete(x.(map[string]any), "address") // host-local gives the next one
		}
	}
	return reflect.DeepEqual(both[0], both[1])
}

// Without a plugin before it, a chained one says so.
func TestChainedAlone(t *testing.T) {
	runtime := runtimeWith(t)
	list := confList(t, `{"cniVersion":"1.0.0","name":"other","plugins":[{"type":"tombolo-cni","chained":true,"deletions":"`+t.TempDir()+`"}]}`)
	_, err := runtime.AddNetworkList(context.Background(), list, sandbox("c1", "none"))
	if err == nil || !strings.Contains(err.Error(), "no plugin comes before it") {
		t.Errorf("%v", err)
	}
}

func confList(t *testing.T, text string) *libcni.NetworkConfigList {
	t.Helper()
	list, err := libcni.NetworkConfFromBytes([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return list
}
