package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/agenttest"
	"github.com/tombolo-mesh/tombolo/agent/linux"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// The test binary is also the plugin.
func TestMain(m *testing.M) {
	if os.Getenv("CNI_TEST_PLUGIN") != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// plugin calls the plugin as a runtime does.
func plugin(t *testing.T, command, socket, netns, args string) (stdout []byte, failure *types.Error) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = []string{"CNI_TEST_PLUGIN=1", "CNI_COMMAND=" + command, "CNI_CONTAINERID=c1", "CNI_NETNS=" + netns, "CNI_IFNAME=eth0", "CNI_PATH=/nowhere", "CNI_ARGS=" + args}
	cmd.Stdin = strings.NewReader(fmt.Sprintf(`{"cniVersion":"1.1.0","name":"tombolo","type":"tombolo-cni","deadline":"300ms","socket":%q,"deletions":%q}`, socket, deletions(socket)))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Run(); err != nil {
		failure = new(types.Error)
		if err := json.Unmarshal(out.Bytes(), failure); err != nil {
			t.Fatalf("%s: not a CNI error: %q", command, out.String())
		}
	}
	return out.Bytes(), failure
}

// deletions is where a test's plugin notes deletions: beside the socket.
func deletions(socket string) string { return filepath.Join(filepath.Dir(socket), "deletions") }

const args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=checkout-1;K8S_POD_UID=uid-1;K8S_POD_INFRA_CONTAINER_ID=c1"

// serve serves handler on a fresh Unix socket.
func serve(t *testing.T, handler http.Handler) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: handler}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return socket
}

var counter atomic.Int32

func netns(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	name := fmt.Sprintf("tc%x-%d", os.Getpid(), counter.Add(1))
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { exec.Command("ip", "netns", "del", name).Run() })
	return name
}

// The plugin, the agent's API and the pods' code together, in real namespaces.
// The agent's own cluster has spoken: until it has, no pod is connected, as
// nothing would keep its packets to other clusters from leaving in clear.
func TestEndToEnd(t *testing.T) {
	pod := netns(t)
	socket, _ := serveAgent(t)

	out, failure := plugin(t, "ADD", socket, "/run/netns/"+pod, args)
	if failure != nil {
		t.Fatal(failure)
	}
	parsed, err := current.NewResult(out)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r := parsed.(*current.Result)
	if r.CNIVersion != "1.1.0" || len(r.IPs) != 2 || r.IPs[0].Address.String() != "10.78.1.2/32" || r.IPs[1].Address.String() != "fd00:78:1::2/128" ||
		*r.IPs[0].Interface != 1 || len(r.Interfaces) != 2 || r.Interfaces[1].Name != "eth0" || r.Interfaces[1].Sandbox != "/run/netns/"+pod || r.Interfaces[1].Mtu != 1400 || len(r.Routes) != 2 {
		t.Errorf("result: %s", out)
	}
	for _, to := range []string{"10.78.1.1", "fd00:78:1::1"} {
		if out, err := exec.Command("ip", "netns", "exec", pod, "ping", "-c", "1", "-W", "2", to).CombinedOutput(); err != nil {
			t.Errorf("ping %s: %v: %s", to, err, out)
		}
	}
	again, failure := plugin(t, "ADD", socket, "/run/netns/"+pod, args)
	if failure != nil || !bytes.Equal(out, again) {
		t.Errorf("repeated ADD: %v: %s", failure, again)
	}
	if _, failure := plugin(t, "CHECK", socket, "/run/netns/"+pod, args); failure != nil {
		t.Error(failure)
	}
	if out, err := exec.Command("ip", "-n", pod, "link", "set", "eth0", "down").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, failure := plugin(t, "CHECK", socket, "/run/netns/"+pod, args); failure == nil || !strings.Contains(failure.Details, "is down") {
		t.Errorf("CHECK of a damaged pod: %v", failure)
	}
	for range 2 {
		if _, failure := plugin(t, "DEL", socket, "", args); failure != nil {
			t.Error(failure)
		}
	}
	if _, failure := plugin(t, "CHECK", socket, "/run/netns/"+pod, args); failure == nil {
		t.Error("CHECK of a deleted pod passed")
	}
}

// serveAgent serves an agent whose node is a namespace of its own.
func serveAgent(t *testing.T) (socket string, pods *linux.Pods) {
	t.Helper()
	pods = openIn(t, netns(t))
	return serveAgentOf(t, pods), pods
}

func serveAgentOf(t *testing.T, pods *linux.Pods) (socket string) {
	t.Helper()
	here := agenttest.Facts{Name: "here", ID: 1}
	mesh := agenttest.NewMesh()
	mesh.SetStore(here.Name, kvstore.NewMemory(kvstore.MemoryOptions{}))
	mesh.Put(t, here.Name, clustermesh.ScopeExport, here.Node(1), here.Cluster(1))
	a, err := agent.New(agent.Config{Cluster: here.Name, ClusterID: here.ID, Node: here.NodeName(1), Connector: mesh, Pods: pods}, agent.NewFakes())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); a.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return serve(t, a.Handler())
}

// openIn opens Pods on a thread inside the namespace that is never used again.
func openIn(t *testing.T, node string) *linux.Pods {
	t.Helper()
	var p *linux.Pods
	err := linux.InNetns("/run/netns/"+node, func() (err error) {
		dir := t.TempDir()
		d, err := linux.OpenDevice(dir, "none", 1, nil)
		if err != nil {
			return err
		}
		defer d.Close()
		tunnels := []netip.Addr{netip.MustParseAddr("10.78.1.1"), netip.MustParseAddr("fd00:78:1::1")}
		if err := d.SetTunnelAddresses(tunnels, nil); err != nil {
			return err
		}
		if p, err = linux.OpenPods(linux.PodsConfig{StateDir: dir}); err != nil {
			return err
		}
		return p.SetNetwork(linux.NodeNetwork{TunnelAddresses: tunnels, PodMTU: 1400,
			PodPrefixes: []netip.Prefix{netip.MustParsePrefix("10.78.1.0/24"), netip.MustParsePrefix("fd00:78:1::/64")}})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func TestVersion(t *testing.T) {
	out, failure := plugin(t, "VERSION", "/nowhere", "", "")
	if failure != nil || !strings.Contains(string(out), `"1.1.0"`) {
		t.Errorf("%v: %s", failure, out)
	}
}

func TestAgentAway(t *testing.T) {
	starting := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		w.Write([]byte(`{"error":"the agent is starting: the node is\u001b[31m not registered"}`))
	})
	socket := serve(t, starting)
	for _, c := range []struct {
		command, socket string
		code            uint
		want            string
	}{
		{"ADD", filepath.Join(t.TempDir(), "none.sock"), types.ErrTryAgainLater, "not running"},
		{"CHECK", filepath.Join(t.TempDir(), "none.sock"), types.ErrTryAgainLater, "not running"},
		{"STATUS", filepath.Join(t.TempDir(), "none.sock"), types.ErrPluginNotAvailable, "does not answer"},
		{"ADD", socket, types.ErrTryAgainLater, "cannot serve this yet; the agent is starting: the node is [31m not registered (asked for 300ms"},
		{"STATUS", socket, types.ErrPluginNotAvailable, "cannot connect pods yet"},
	} {
		_, failure := plugin(t, c.command, c.socket, "/run/netns/x", args)
		if failure == nil || failure.Code != c.code || !strings.Contains(failure.Msg+"; "+failure.Details, c.want) {
			t.Errorf("%s: %+v, want code %d with %q", c.command, failure, c.code, c.want)
		}
	}
}
