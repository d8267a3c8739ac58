package clustermesh

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

var update = flag.Bool("update", false, "write the golden files of the present version anew")

const goldenDir = "testdata/v1"

type goldenRecord struct {
	file   string
	record Record
}

// goldenRecords are one or two records of each kind with every field set. Once
// released they are never changed: a new field gets a new record.
func goldenRecords() []goldenRecord {
	v4, v6 := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/48")
	name := ServiceName{"shop", "checkout"}
	ports := []Port{{"http", TCP, 8080, 0}, {"dns", UDP, 5353, 0}}
	return []goldenRecord{
		{"cluster", &Cluster{
			Name: "aws", ID: 1, Incarnation: 0x1122334455667788, CABundle: []byte("-----BEGIN CERTIFICATE-----\n"),
			MeshAddresses: []string{"mesh.aws.example:7443"}, PodPrefixes: []netip.Prefix{v4, v6},
			Capabilities: []string{"protocol/1"}, Version: "v0.1.0", Origin: 1_700_000_000_000_000_001,
		}},
		{"node", &Node{
			Name: "node-1", Number: 7, UnderlayAddresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
			TunnelAddresses: []netip.Addr{netip.MustParseAddr("10.1.7.1"), netip.MustParseAddr("fd00:1:7::1")},
			PodPrefixes:     []netip.Prefix{netip.MustParsePrefix("10.1.7.0/24"), netip.MustParsePrefix("fd00:1:7::/64")},
			WireGuardKey:    [32]byte{1, 2, 3, 31: 32}, WireGuardEndpoint: "192.0.2.1:51820", Gateway: true, Zone: "eu-1a", Origin: 2,
		}},
		{"service", &Service{
			Name: name, Ports: []Port{{"http", TCP, 80, 30080}, {"dns", UDP, 53, 0}, {"", SCTP, 9, 0}},
			Frontends: []netip.Addr{netip.MustParseAddr("172.20.0.10"), netip.MustParseAddr("fd01::10")},
			Global:    true, Shared: true, Weight: 0, HasWeight: true, Affinity: AffinityLocal, Failover: []string{"gcp", "azure"},
			MinHealthy: "30%", SessionAffinity: 3 * time.Hour, Headless: true, PublishNotReady: true, Origin: 3,
		}},
		{"endpointslice", &EndpointSlice{Name: SliceName{name, "checkout-x1"}, Ports: ports, Endpoints: []Endpoint{
			{Address: netip.MustParseAddr("10.1.7.5"), Node: 7, Zone: "eu-1a", Ready: true, Serving: true, Terminating: false},
			{Address: netip.MustParseAddr("10.1.8.5"), Node: 8, Zone: "eu-1b", Ready: false, Serving: true, Terminating: true},
		}, Origin: 4}},
		{"endpointslice-v6", &EndpointSlice{Name: SliceName{name, "checkout-x2"}, Ports: ports, Endpoints: []Endpoint{
			{Address: netip.MustParseAddr("fd00:1:7::5"), Node: 7, Zone: "", Ready: true, Serving: true, Terminating: false},
		}, Origin: 5}},
		{"identity", &IdentityRecord{ID: MakeIdentity(1, 42), Labels: []Label{{"app", "checkout"}, {LabelCluster, "aws"}}, Origin: 6}},
		{"address", &Address{
			Name: AddressName{"node-1", netip.MustParsePrefix("10.1.7.5/32")}, Identity: MakeIdentity(1, 42),
			Owner: "0b0f8a4e-5c1d-4a6e-9a57-1f2e3d4c5b6a", NamedPorts: []NamedPort{{"http", TCP, 8080}}, Namespace: "shop", Pod: "checkout-7d9-abcde", Origin: 7,
		}},
		{"address-prefix", &Address{Name: AddressName{"node-1", netip.MustParsePrefix("fd00:1:7::/64")}, Identity: MakeIdentity(1, 43), Owner: "edge-site", Origin: 8}},
		{"policy", &Policy{Namespace: "shop", Name: "deny", JSON: []byte(`{"spec":{"podSelector":{}}}`), Origin: 9}},
		{"policy-large", &Policy{Namespace: "shop", Name: "large", JSON: bytes.Repeat([]byte(`{"spec":{"podSelector":{}}}`), 100), Origin: 10}},
		{"workload", &Workload{Namespace: "shop", Name: "checkout-1", Node: "node-1", Owner: "uid-1", Readiness: &Probe{
			Kind: "http", Port: 8080, Path: "/ready", Period: 5 * time.Second, Timeout: time.Second, InitialDelay: 3 * time.Second, SuccessThreshold: 1, FailureThreshold: 3,
		}, Origin: 11}},
		{"peer", &Peer{
			Name: "gcp", ID: 2, CABundle: []byte("-----BEGIN CERTIFICATE-----\n"), MeshAddresses: []string{"mesh.gcp.example:7443"},
			PodPrefixes: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")}, MaxKeys: 1000, MaxBytes: 1 << 20,
			Joined: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Origin: 12,
		}},
		{"service-external", &Service{
			Name: ServiceName{"shop", "front"}, Ports: []Port{{"http", TCP, 80, 30080}}, Frontends: []netip.Addr{netip.MustParseAddr("172.20.0.11")},
			Outside: &Outside{
				Addresses: []External{
					{netip.MustParseAddr("198.51.100.7"), ExternalIP}, {netip.MustParseAddr("203.0.113.9"), ExternalLoadBalancer},
				},
				SourceRanges: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")},
			},
			ExternalLocal: true, InternalLocal: true, Distribution: DistributionSameNode, HealthCheckPort: 32000, Origin: 13,
		}},
		{"endpointslice-hints", &EndpointSlice{Name: SliceName{name, "checkout-x3"}, Ports: ports, Endpoints: []Endpoint{
			{Address: netip.MustParseAddr("10.1.7.5"), Node: 7, Zone: "eu-1a", Ready: true, Serving: true, Hints: MakeHints([]string{"eu-1a", "eu-1b"}, []uint16{7, 10, 9})},
			{Address: netip.MustParseAddr("10.1.7.6"), Node: 7, Zone: "eu-1a", Serving: true, Terminating: true, Hints: MakeHints([]string{"eu-1a"}, nil)},
			{Address: netip.MustParseAddr("10.1.7.7"), Node: 7, Ready: true, Serving: true, Hints: MakeHints(nil, []uint16{7})},
		}, Origin: 14}},
		{"clusterpolicy", &ClusterPolicy{Name: "no-metadata", JSON: []byte(`{"spec":{"priority":1,"tier":"Admin"}}`), Origin: 15}},
		{"workload-host", &Workload{Namespace: "shop", Name: "edge-1", Node: "node-1", Owner: "uid-2", HostNetwork: true, HostPorts: []HostPort{
			{TCP, 80, netip.Addr{}, 8080}, {UDP, 53, netip.MustParseAddr("192.0.2.1"), 5353}, {SCTP, 9, netip.MustParseAddr("::"), 9},
		}, Origin: 16}},
		{"service-exported", &Service{
			Name: ServiceName{"shop", "cart"}, Ports: []Port{{"http", TCP, 80, 0}, {"grpc", TCP, 81, 0}}, Frontends: []netip.Addr{netip.MustParseAddr("172.20.0.12")},
			Shared: true, Export: &Export{
				Created: 1_700_000_000_000_000_000, IPv4: true, IPv6: true, AppProtocols: []string{"", "kubernetes.io/h2c"}, TrafficDistribution: "PreferSameZone",
				Labels: []Label{{"tier", "front"}}, Annotations: []Label{{"example.com/owner", "team a"}, {"example.com/page", ""}},
			}, Origin: 17,
		}},
		{"service-import", &Service{
			Name: ServiceName{"shop", "derived-5f1c"}, Ports: []Port{{"http", TCP, 80, 0}}, Frontends: []netip.Addr{netip.MustParseAddr("172.20.0.13")},
			Shared: true, Import: "cart", Origin: 18,
		}},
		{"endpointslice-hostnames", &EndpointSlice{Name: SliceName{ServiceName{"shop", "db"}, "db-x1"}, Ports: []Port{{"sql", TCP, 5432, 0}}, Endpoints: []Endpoint{
			{Address: netip.MustParseAddr("10.1.7.5"), Node: 7, Ready: true, Serving: true, Hostname: MakeHostname("db-0")},
			{Address: netip.MustParseAddr("10.1.7.6"), Node: 7, Ready: true, Serving: true},
		}, Origin: 19}},
		{"drain", &Drain{Cluster: "gcp", Start: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Over: 5 * time.Minute, From: ShareAll, By: "ops@jump", Origin: 20}},
		{"drain-service", &Drain{Cluster: "gcp", Service: name, Start: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Over: 30 * time.Second, From: 13107, Back: true, Origin: 21}},
		{"cluster-gateway", &Cluster{
			Name: "aws", ID: 1, Incarnation: 0x1122334455667788, CABundle: []byte("-----BEGIN CERTIFICATE-----\n"),
			MeshAddresses: []string{"mesh.aws.example:7443"}, PodPrefixes: []netip.Prefix{v4, v6},
			Capabilities: []string{"protocol/1"}, Version: "v0.1.0", Topology: TopologyGateway, Origin: 20,
		}},
		{"node-nat", &Node{
			Name: "node-2", Number: 8, UnderlayAddresses: []netip.Addr{netip.MustParseAddr("192.0.2.2")},
			TunnelAddresses: []netip.Addr{netip.MustParseAddr("10.1.8.1")}, PodPrefixes: []netip.Prefix{netip.MustParsePrefix("10.1.8.0/24")},
			WireGuardKey: [32]byte{4, 5, 6, 31: 32}, WireGuardPort: 51820, Gateway: true, Origin: 21,
		}},
	}
}

// TestGolden: values written by every version so far are read, and say the same.
// A file holds the record as text (for people), then the value in hex.
func TestGolden(t *testing.T) {
	if *update {
		writeGolden(t)
	}
	for _, g := range goldenRecords() {
		k := KeyOf(ScopeExport, "aws", g.record)
		value := readGolden(t, g, k)
		got, err := Decode(k, value)
		if err != nil {
			t.Errorf("%s: %v", g.file, err)
			continue
		}
		if !reflect.DeepEqual(got, g.record) {
			t.Errorf("%s reads as\n%+v\nnot\n%+v", g.file, got, g.record)
		}
		// What this version writes may be compressed otherwise, but is the same.
		now, err := Encode(g.record)
		if err != nil || !Same(k.String(), now, value) {
			t.Errorf("%s: the present encoding is not the same: %v", g.file, err)
		}
		got, err = Decode(k, withUnknownFields(t, value))
		if err != nil || !reflect.DeepEqual(got, g.record) {
			t.Errorf("%s with fields of a newer version reads as %+v, %v", g.file, got, err)
		}
	}
	files, _ := filepath.Glob(goldenDir + "/*.txt")
	if len(files) != len(goldenRecords()) {
		t.Errorf("%d golden files for %d records: -update writes the missing ones", len(files), len(goldenRecords()))
	}
}

// withUnknownFields adds one field of every wire type, as a newer version might.
func withUnknownFields(t *testing.T, value []byte) []byte {
	plain, _, err := unpack(value, nil)
	if err != nil {
		t.Fatal(err)
	}
	b := append([]byte{encodingPlain}, plain...)
	b = protowire.AppendVarint(protowire.AppendTag(b, 1001, protowire.VarintType), 77)
	b = protowire.AppendFixed32(protowire.AppendTag(b, 1002, protowire.Fixed32Type), 77)
	b = protowire.AppendFixed64(protowire.AppendTag(b, 1003, protowire.Fixed64Type), 77)
	return protowire.AppendBytes(protowire.AppendTag(b, 1004, protowire.BytesType), []byte("future"))
}

func readGolden(t *testing.T, g goldenRecord, k Key) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(goldenDir, g.file+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	line, digits, _ := strings.Cut(string(text), "\n")
	if line+"\n" != DumpLine(k, g.record) {
		t.Errorf("%s: the text is\n%snot\n%s", g.file, line+"\n", DumpLine(k, g.record))
	}
	value, err := hex.DecodeString(strings.Join(strings.Fields(digits), ""))
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func writeGolden(t *testing.T) {
	if err := os.MkdirAll(goldenDir, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, g := range goldenRecords() {
		value, err := Encode(g.record)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		b.WriteString(DumpLine(KeyOf(ScopeExport, "aws", g.record), g.record))
		for len(value) > 0 {
			n := min(32, len(value))
			fmt.Fprintf(&b, "%x\n", value[:n])
			value = value[n:]
		}
		if err := os.WriteFile(filepath.Join(goldenDir, g.file+".txt"), []byte(b.String()), 0o666); err != nil {
			t.Fatal(err)
		}
	}
}
