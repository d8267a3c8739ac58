package clustermesh

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

func TestRoundTrip(t *testing.T) {
	interning := newDecoder(true)
	rapid.Check(t, func(t *rapid.T) {
		r := genRecord.Draw(t, "record")
		value, err := Encode(r)
		if err != nil {
			t.Fatal(err)
		}
		k := KeyOf(ScopeExport, "aws", r)
		received := bytes.Clone(value)
		back, err := Decode(k, received)
		if err != nil {
			t.Fatal(err)
		}
		other, err := interning.decode(k.Kind, k.Name, received)
		if err != nil {
			t.Fatal(err)
		}
		other = owned(other)
		clear(received) // nothing may alias the buffer
		for _, got := range []Record{back, other} {
			if !reflect.DeepEqual(got, r) {
				t.Fatalf("came back different:\n%+v\n%+v", r, got)
			}
			if !Equal(got, r) || Describe(got) != Describe(r) {
				t.Fatal("equal records are not Equal, or read differently")
			}
		}
		if !Same(k.String(), value, value) {
			t.Fatal("a value is not the Same as itself")
		}
	})
}

// TestDescribeTellsApart: records that differ read differently, and are not Equal.
func TestDescribeTellsApart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := genRecord.Draw(t, "a"), genRecord.Draw(t, "b")
		if a.Kind() != b.Kind() || a.KeyName() != b.KeyName() {
			return
		}
		if Equal(a, b) != (Describe(a) == Describe(b)) {
			t.Fatalf("Equal %v, but %q and %q", Equal(a, b), Describe(a), Describe(b))
		}
	})
}

// TestEqualSeesEveryField changes each field of each kind of record alone.
func TestEqualSeesEveryField(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := genRecord.Draw(t, "record")
		other := genRecord.Filter(func(o Record) bool { return o.Kind() == r.Kind() }).Draw(t, "other")
		value := reflect.ValueOf(r).Elem()
		for i := range value.NumField() {
			mixed := reflect.New(value.Type())
			mixed.Elem().Set(value)
			mixed.Elem().Field(i).Set(reflect.ValueOf(other).Elem().Field(i))
			same := value.Type().Field(i).Name == "Origin" || reflect.DeepEqual(mixed.Interface(), reflect.ValueOf(r).Interface())
			if Equal(r, mixed.Interface().(Record)) != same {
				t.Fatalf("%s.%s: Equal is not %v", value.Type().Name(), value.Type().Field(i).Name, same)
			}
		}
	})
}

func TestSameIgnoresOriginAndEncoding(t *testing.T) {
	s := &Service{Name: ServiceName{"a", "b"}, Global: true, Origin: 5}
	key := KeyOf(ScopeExport, "aws", s).String()
	a, _ := Encode(s)
	s.Origin = 6
	b, _ := Encode(s)
	packed := append([]byte{encodingZstd}, encoder().EncodeAll(b[1:], nil)...)
	if !Same(key, a, b) || !Same(key, a, packed) {
		t.Error("the origin or the encoding made a difference")
	}
	s.Global = false
	c, _ := Encode(s)
	if Same(key, a, c) || Same(key, a, nil) || Same("nonsense", a, b) || Same(key, []byte("p\xff"), a) {
		t.Error("different values are the Same")
	}
	if !Same(key, nil, nil) {
		t.Error("equal bytes are not the Same")
	}
}

func TestEncodingByte(t *testing.T) {
	p := &Policy{Namespace: "a", Name: "b", JSON: []byte(strings.Repeat(`{"spec":{}}`, 400))}
	value, err := Encode(p)
	if err != nil || value[0] != encodingZstd || len(value) > 200 {
		t.Fatalf("a large record is not compressed: %d bytes, %v", len(value), err)
	}
	p.JSON = p.JSON[:500]
	if value, _ = Encode(p); value[0] != encodingPlain {
		t.Error("a small record is compressed")
	}
	k := KeyOf(ScopeLocal, "aws", p)
	for value, want := range map[string]string{
		"":                                       "value is empty",
		"qabc":                                   "unknown encoding byte 0x71",
		"zabc":                                   "zstd",
		"p\xff\xff":                              "record \"/tombolo",
		string(make([]byte, kvstore.MaxValue+1)): "at most 65536",
		string(bomb()):                           "zstd",
	} {
		if _, err := Decode(k, []byte(value)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.10q: %v; want %q", value, err, want)
		}
	}
}

// bomb is a small value that would grow beyond the limit.
func bomb() []byte {
	return append([]byte{encodingZstd}, encoder().EncodeAll(make([]byte, 8<<20), nil)...)
}

func TestEncodeTooLarge(t *testing.T) {
	noise := make([]byte, 200<<10) // hardly compresses, and is UTF-8
	random := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(' ' + random.IntN(90))
	}
	big := &Policy{Namespace: "shop", Name: "big", JSON: noise}
	_, err := Encode(big)
	if err == nil || !strings.Contains(err.Error(), `policy "shop/big"`) || !strings.Contains(err.Error(), "at most 65536") {
		t.Errorf("error does not name record and size: %v", err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	addr, addr16 := []byte{10, 0, 0, 1}, append(make([]byte, 15), 1)
	mapped := append(append(make([]byte, 10), 0xff, 0xff), addr...)
	endpoints := func(n int) (list []*pb.Endpoint) {
		for range n {
			list = append(list, &pb.Endpoint{Address: addr})
		}
		return list
	}
	tests := []struct {
		kind Kind
		name string
		m    proto.Message
		want string
	}{
		{KindEndpointSlice, "a/b/c", &pb.EndpointSlice{Endpoints: endpoints(101)}, "at most 100"},
		{KindEndpointSlice, "a/b/c", &pb.EndpointSlice{Endpoints: []*pb.Endpoint{{Address: addr}, {Address: addr16}}}, "both address families"},
		{KindEndpointSlice, "a/b/c", &pb.EndpointSlice{Endpoints: []*pb.Endpoint{{Address: addr[:3]}}}, "address of 3 bytes"},
		{KindEndpointSlice, "a/b/c", &pb.EndpointSlice{Endpoints: []*pb.Endpoint{{}}}, "address of 0 bytes"},
		{KindEndpointSlice, "a/b/c", &pb.EndpointSlice{Endpoints: []*pb.Endpoint{{Address: mapped}}}, "IPv4 in 16 bytes"},
		{KindEndpointSlice, "a/b/c", &pb.EndpointSlice{Endpoints: []*pb.Endpoint{{Address: addr, Node: 70000}}}, "node number 70000"},
		{KindEndpointSlice, "a/b/c", &pb.EndpointSlice{Ports: []*pb.Port{{Protocol: 6}}}, "port 0"},
		{KindEndpointSlice, "a/b/c", &pb.EndpointSlice{Ports: []*pb.Port{{Protocol: 6, Port: 65536}}}, "port 65536"},
		{KindEndpointSlice, "a/b/c", &pb.EndpointSlice{Ports: []*pb.Port{{Protocol: 1, Port: 1}}}, "unknown protocol 1"},
		{KindEndpointSlice, "a/b", &pb.EndpointSlice{}, "2 parts"},
		{KindService, "a/b", &pb.Service{Weight: 65536}, "weight 65536"},
		{KindService, "a/b", &pb.Service{Frontends: [][]byte{{1}}}, "address of 1 bytes"},
		{KindService, "a/b", &pb.Service{SessionAffinitySeconds: 1<<32 - 1}, "session affinity"},
		{KindService, "a/b", &pb.Service{External: []*pb.External{{Address: addr[:2], Kind: 1}}}, "external address: an address of 2 bytes"},
		{KindService, "a/b", &pb.Service{External: []*pb.External{{Address: addr}}}, "external address of kind 0"},
		{KindService, "a/b", &pb.Service{SourceRanges: []*pb.Prefix{{Address: addr, Bits: 24}}}, "should be 10.0.0.0/24"},
		{KindService, "a/b", &pb.Service{HealthCheckPort: 65536}, "health check port 65536"},
		{KindService, "a/b", &pb.Service{Distribution: 256}, "distribution 256"},
		{KindEndpointSlice, "a/b/c", &pb.EndpointSlice{Endpoints: []*pb.Endpoint{{Address: addr, ForZones: []string{"a,b"}}}}, `zone hint "a,b" is no label value`},
		{KindEndpointSlice, "a/b/c", &pb.EndpointSlice{Endpoints: []*pb.Endpoint{{Address: addr, ForZones: []string{""}}}}, "zone hint of 0 bytes"},
		{KindEndpointSlice, "a/b/c", &pb.EndpointSlice{Endpoints: []*pb.Endpoint{{Address: addr, ForZones: make([]string, 9)}}}, "9 zone hints; at most 8"},
		{KindEndpointSlice, "a/b/c", &pb.EndpointSlice{Endpoints: []*pb.Endpoint{{Address: addr, ForNodes: []uint32{0}}}}, "node hint 0"},
		{KindNode, "n", &pb.Node{}, "node number 0"},
		{KindNode, "n", &pb.Node{Number: 1, WireguardKey: addr}, "WireGuard key has 4 bytes"},
		{KindNode, "n", &pb.Node{Number: 1, PodPrefixes: []*pb.Prefix{{Address: addr, Bits: 33}}}, "prefix length 33"},
		{KindNode, "n", &pb.Node{Number: 1, PodPrefixes: []*pb.Prefix{{Address: addr, Bits: 24}}}, "should be 10.0.0.0/24"},
		{KindIdentity, "1048577", &pb.Identity{Labels: []*pb.Label{{Key: "b"}, {Key: "a"}}}, "not sorted"},
		{KindIdentity, "1048577", &pb.Identity{Labels: []*pb.Label{{Key: "a"}, {Key: "a"}}}, "not sorted"},
		{KindIdentity, "x", &pb.Identity{}, "not a decimal"},
		{KindAddress, "n", &pb.Address{}, "<node>/<prefix>"},
		{KindAddress, "n/10.0.0.1", &pb.Address{NamedPorts: []*pb.NamedPort{{Protocol: 6}}}, "named port 0"},
		{KindAddress, "n/10.0.0.1", &pb.Address{Owner: strings.Repeat("x", 600)}, "owner has 600 bytes"},
		{KindCluster, "", &pb.Cluster{Name: "aws"}, "cluster ID 0"},
		{KindCluster, "", &pb.Cluster{Name: "aws", Id: 4096}, "cluster ID 4096"},
		{KindCluster, "", &pb.Cluster{Id: 1}, "cluster name is empty"},
		{KindPeer, "gcp", &pb.Peer{Name: "aws", Id: 1}, "its key of"},
		{KindWorkload, "a/b", &pb.Workload{Readiness: &pb.Probe{}}, "probe port 0"},
		{KindWorkload, "a/b", &pb.Workload{HostPorts: []*pb.HostPort{{Protocol: 6, Port: 80}}}, "container port 0"},
		{KindWorkload, "a/b", &pb.Workload{HostPorts: []*pb.HostPort{{Protocol: 6, ContainerPort: 80}}}, "host port 0"},
		{KindWorkload, "a/b", &pb.Workload{HostPorts: []*pb.HostPort{{Protocol: 6, Port: 80, ContainerPort: 80, Address: mapped}}}, "IPv4 in 16 bytes"},
		{KindClusterPolicy, "a/b", &pb.ClusterPolicy{}, "2 parts"},
		{KindClusterPolicy, "a", &pb.ClusterPolicy{Json: []byte{0xff}}, "not UTF-8"},
		{KindDrain, "gcp", &pb.Drain{Start: 1, Over: -1}, "a drain over -1ns"},
		{KindDrain, "gcp", &pb.Drain{Start: 1, Over: 1 << 60}, "from 0 to 24h"},
		{KindDrain, "gcp", &pb.Drain{Start: 1, From: 65536}, "a drain from 65536"},
		{KindDrain, "gcp", &pb.Drain{Start: 1, By: strings.Repeat("x", 600)}, "by has 600 bytes"},
		{KindDrain, "GCP", &pb.Drain{Start: 1}, "not a DNS label"},
		{KindDrain, "gcp/a", &pb.Drain{Start: 1}, "1 parts"},
		{"thing", "x", &pb.Node{}, "unknown kind"},
	}
	for _, test := range tests {
		plain, err := proto.Marshal(test.m)
		if err != nil {
			t.Fatal(err)
		}
		_, err = newDecoder(true).decode(test.kind, test.name, append([]byte{encodingPlain}, plain...))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s %v: %v; want %q", test.kind, test.m, err, test.want)
		}
	}
	notText := append([]byte{encodingPlain}, protowire.AppendString(protowire.AppendTag(nil, 2, protowire.BytesType), "\xff")...)
	if _, err := newDecoder(false).decode(KindAddress, "n/10.0.0.1", notText); err == nil || !strings.Contains(err.Error(), "not UTF-8") {
		t.Errorf("invalid UTF-8: %v", err)
	}
}

// TestDecoderForgets: what one value sets, the next one of the same decoder does not have.
func TestDecoderForgets(t *testing.T) {
	d := newDecoder(true)
	rapid.Check(t, func(t *rapid.T) {
		full := genRecord.Draw(t, "record")
		value, err := Encode(full)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.decode(full.Kind(), full.KeyName(), value); err != nil {
			t.Fatal(err)
		}
		got, err1 := d.decode(full.Kind(), full.KeyName(), []byte{encodingPlain})
		want, err2 := newDecoder(false).decode(full.Kind(), full.KeyName(), []byte{encodingPlain})
		if (err1 == nil) != (err2 == nil) || err1 == nil && !reflect.DeepEqual(owned(got), owned(want)) {
			t.Fatalf("%+v, %v; want %+v, %v", got, err1, want, err2)
		}
	})
}

func FuzzDecode(f *testing.F) {
	for i, r := range goldenRecords() {
		value, err := Encode(r.record)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(i, value)
	}
	d := newDecoder(true)
	f.Fuzz(func(t *testing.T, i int, value []byte) {
		all := goldenRecords()
		r := all[uint(i)%uint(len(all))].record
		got, err := d.decode(r.Kind(), r.KeyName(), value)
		if err != nil {
			return
		}
		got = owned(got)
		again, err := Encode(got)
		if err != nil {
			t.Fatalf("decoded, but not encoded: %v", err)
		}
		back, err := Decode(KeyOf(ScopeExport, "aws", got), again)
		if err != nil || !reflect.DeepEqual(back, got) {
			t.Fatalf("came back different: %v\n%+v\n%+v", err, got, back)
		}
		if strings.ContainsAny(Describe(got), "\n\x1b") {
			t.Fatal("control characters in the description")
		}
	})
}
