package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
)

// runtimeWith is CNI's own library, which finds this test binary as the plugin; its
// cache is a directory of its own.
func runtimeWith(t *testing.T) *libcni.CNIConfig {
	t.Helper()
	bin := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(bin, "tombolo-cni")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CNI_TEST_PLUGIN", "1")
	return libcni.NewCNIConfigWithCacheDir([]string{bin}, t.TempDir(), nil)
}

func conflist(t *testing.T, name, socket string) *libcni.NetworkConfigList {
	t.Helper()
	list, err := libcni.NetworkConfFromBytes([]byte(`{"cniVersion":"1.1.0","name":"` + name + `","plugins":[{"type":"tombolo-cni","deadline":"10s","socket":"` + socket + `","deletions":"` + deletions(socket) + `"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func sandbox(container, ns string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: container, NetNS: "/run/netns/" + ns, IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", "pod-" + container}, {"K8S_POD_UID", "uid-" + container}}}
}

// The whole specification by the library that runtimes use: status, add, check,
// collect, delete.
func TestLibcni(t *testing.T) {
	ctx := t.Context()
	one, two, three := netns(t), netns(t), netns(t)
	socket, pods := serveAgent(t)
	runtime, list, other := runtimeWith(t), conflist(t, "tombolo", socket), conflist(t, "other", socket)

	if err := runtime.GetStatusNetworkList(ctx, list); err != nil {
		// Until the agent's own cluster has spoken; ADD waits for that.
		t.Log("at first:", err)
	}
	for container, ns := range map[string]string{"c1": one, "c2": two} {
		r, err := runtime.AddNetworkList(ctx, list, sandbox(container, ns))
		if err != nil {
			t.Fatal(err)
		}
		res, err := current.GetResult(r)
		if err != nil || len(res.IPs) != 2 {
			t.Fatalf("%s: %+v %v", container, res, err)
		}
		if err := runtime.CheckNetworkList(ctx, list, sandbox(container, ns)); err != nil {
			t.Error(err)
		}
	}
	if _, err := runtime.AddNetworkList(ctx, other, sandbox("c3", three)); err != nil {
		t.Fatal(err)
	}
	if err := runtime.GetStatusNetworkList(ctx, list); err != nil {
		t.Error(err)
	}
	names := func() (out []string) {
		all, err := pods.List(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range all {
			out = append(out, p.UID)
		}
		return out
	}
	// A library that has lost its cache: what follows is the plugin's alone.
	forgetful := runtimeWith(t)
	collect := func(want string, valid ...types.GCAttachment) {
		t.Helper()
		if err := forgetful.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: valid}); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(names(), " "); got != want {
			t.Errorf("after GC: %s, want %s", got, want)
		}
	}
	first, second := types.GCAttachment{ContainerID: "c1", IfName: "eth0"}, types.GCAttachment{ContainerID: "c2", IfName: "eth0"}
	collect("uid-c1 uid-c2 uid-c3", first, second)
	collect("uid-c1 uid-c3", first)
	collect("uid-c1 uid-c3", first)
	if err := runtime.CheckNetworkList(ctx, list, sandbox("c2", two)); err == nil {
		t.Error("CHECK of a collected pod passed")
	}
	collect("uid-c3") // an empty list: of this network there is nothing; the other one's stays
	if err := runtime.CheckNetworkList(ctx, other, sandbox("c3", three)); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := runtime.DelNetworkList(ctx, other, sandbox("c3", three)); err != nil {
			t.Error(err)
		}
	}
	if got := names(); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

// GC without the key that lists what is valid takes nothing away.
func TestCollectWithoutList(t *testing.T) {
	ns := netns(t)
	socket, pods := serveAgent(t)
	if _, failure := plugin(t, "ADD", socket, "/run/netns/"+ns, args); failure != nil {
		t.Fatal(failure)
	}
	_, failure := plugin(t, "GC", socket, "", "")
	if failure == nil || failure.Code != types.ErrInvalidNetworkConfig || !strings.Contains(failure.Details, "cni.dev/valid-attachments is missing") {
		t.Errorf("%+v", failure)
	}
	if list, _ := pods.List(t.Context()); len(list) != 1 {
		t.Errorf("%d pods are left", len(list))
	}
}

// Errors are those of the specification: a configuration that cannot be used.
func TestBadConfiguration(t *testing.T) {
	runtime := runtimeWith(t)
	list, err := libcni.NetworkConfFromBytes([]byte(`{"cniVersion":"1.1.0","name":"tombolo","plugins":[{"type":"tombolo-cni","deadline":"soon"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	_, err = runtime.AddNetworkList(t.Context(), list, sandbox("c1", "none"))
	if err == nil || !strings.Contains(err.Error(), `deadline "soon"`) {
		t.Errorf("%v", err)
	}
}
