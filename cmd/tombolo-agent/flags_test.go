package main

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/tombolo-mesh/tombolo/agent"
)

func TestDataplaneFlags(t *testing.T) {
	good := options{encrypt: "all", policyClusters: "all", masquerade: true, natPorts: "40000-50000", nodePortAddrs: []string{"192.0.2.1/24"}}
	var cfg agent.Config
	if err := good.dataplane(&cfg); err != nil {
		t.Fatal(err)
	}
	if !cfg.EncryptAll || !cfg.PolicyAllClusters || !cfg.Masquerade || cfg.NATPorts != [2]uint16{40000, 50000} ||
		!slices.Equal(cfg.NodePortAddresses, []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}) {
		t.Errorf("%+v", cfg)
	}
	for name, c := range map[string]struct {
		change func(*options)
		want   string
	}{
		"encrypt":  {func(o *options) { o.encrypt = "some" }, "allowed are clusters, all"},
		"policy":   {func(o *options) { o.policyClusters = "" }, "allowed are own, all"},
		"chained":  {func(o *options) { o.cni.mode = "chained" }, "use its encryption"},
		"xdp":      {func(o *options) { o.cni.mode, o.encrypt, o.xdp = "chained", "clusters", []string{"eth0"} }, "node ports are kube-proxy's"},
		"ports":    {func(o *options) { o.natPorts = "61000" }, "want FIRST-LAST"},
		"low":      {func(o *options) { o.natPorts = "80-9000" }, "from 1024 on"},
		"few":      {func(o *options) { o.natPorts = "61000-61010" }, "11 ports are too few"},
		"reversed": {func(o *options) { o.natPorts = "65000-61000" }, "want FIRST-LAST"},
		"prefix":   {func(o *options) { o.nodePortAddrs = []string{"192.0.2.1"} }, "not a prefix"},
	} {
		o := good
		c.change(&o)
		if err := o.dataplane(new(agent.Config)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// With another CNI in charge, nothing is masqueraded that it does not masquerade.
func TestDataplaneChained(t *testing.T) {
	o := options{encrypt: "clusters", policyClusters: "own", masquerade: true, natPorts: "40000-50000", cni: cniOptions{mode: "chained"}}
	var cfg agent.Config
	if err := o.dataplane(&cfg); err != nil || !cfg.Chained || cfg.Masquerade {
		t.Errorf("%v: %+v", err, cfg)
	}
}

func TestNodePortAddresses(t *testing.T) {
	underlay := []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")}
	of := func(texts ...string) (out []netip.Prefix) {
		for _, s := range texts {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	if got := nodePortAddresses(underlay, nil); len(got) != 2 {
		t.Errorf("without prefixes: %v", got)
	}
	if got := nodePortAddresses(underlay, of("2001:db8::/64")); !slices.Equal(got, underlay[1:]) {
		t.Errorf("of one family: %v", got)
	}
	if err := checkNodePorts(underlay, of("198.51.100.0/24")); err == nil || !strings.Contains(err.Error(), "none of this node's addresses") {
		t.Errorf("prefixes that hold nothing: %v", err)
	}
	if err := checkNodePorts(underlay, of("192.0.2.0/24")); err != nil {
		t.Error(err)
	}
}

func TestXDPFlag(t *testing.T) {
	got, err := parseXDP([]string{"eth0", "eth1:generic"})
	if want := map[string]bool{"eth0": false, "eth1": true}; err != nil || !maps.Equal(got, want) {
		t.Errorf("%v %v", got, err)
	}
	for text, want := range map[string]string{"eth0:native": "want DEVICE", ":generic": "want DEVICE", "eth0:": "want DEVICE", "eth0,eth0:generic": "named twice"} {
		if _, err := parseXDP(strings.Split(text, ",")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestMapSizes(t *testing.T) {
	s, err := mapSizes([]string{"flows=1000", "services=77"})
	if err != nil || s.Flows != 1000 || s.Services != 77 || s.Slots == 0 {
		t.Errorf("%+v %v", s, err)
	}
	if _, err := mapSizes([]string{"rows=1"}); err == nil || !strings.Contains(err.Error(), "--map-size") {
		t.Errorf("%v", err)
	}
}

func TestWireGuardEndpoint(t *testing.T) {
	first := netip.MustParseAddr("2001:db8::7")
	for said, want := range map[string]string{"": "[2001:db8::7]:51820", "none": "", "203.0.113.7:40000": "203.0.113.7:40000"} {
		o := options{endpoint: said, port: 51820}
		if err := o.checkEndpoint(); err != nil || o.reachedAt(first) != want {
			t.Errorf("%q: %q, want %q; %v", said, o.reachedAt(first), want, err)
		}
	}
	for _, said := range []string{"None", "gw.example:51820", "203.0.113.7", "203.0.113.7:0", "0.0.0.0:51820"} {
		if err := (options{endpoint: said}).checkEndpoint(); err == nil || !strings.Contains(err.Error(), "or none") {
			t.Errorf("%q: %v", said, err)
		}
	}
}
