package main

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/policy/trace"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// nasty is a name that would repaint a terminal, reorder a line and forge rows.
const nasty = "evil\x1b[2J\u202e\nfake\trow"

func ago(d time.Duration) *time.Time {
	at := testNow.Add(-d)
	return &at
}

// goodWorld has one healthy peer, one that is not in reach, and one whose
// records are lies.
func goodWorld(t *testing.T) *world {
	return newWorld(t, agentAnswers(), &fakeAdmin{status: serverStatus()})
}

func agentAnswers() map[string]any {
	paths := map[string]any{
		"/v1/status": agent.Status{
			APIVersion: agent.APIVersion, Kind: "AgentStatus", Node: "n1", Cluster: "aws", ClusterID: 1, Ready: true, Started: *ago(3 * time.Hour),
			Clusters: []agent.ClusterStatus{
				{Name: "aws", ID: 1, Local: true, Connected: true, Synced: true, Nodes: 2, Records: 19, Revision: 42, StoreID: "a1", Path: path(agent.PathUp, 0.31, 0)},
				{Name: "azure", ID: 3, Synced: true, StaleSince: ago(90 * time.Second), LastError: "connection refused", Nodes: 2, NodesDown: []string{"n1", "n2"}, Down: true, Records: 11, Revision: 7, Path: path(agent.PathDown, 38.04, 100)},
				{Name: "edge", ID: 4, FromSnapshot: true, StaleSince: ago(5 * time.Minute), Nodes: 3, NodesDown: []string{"n2"}, Records: 9, Path: path(agent.PathDegraded, 123.4, 0.04)},
				{Name: "gcp", ID: 2, Connected: true, Synced: true, Nodes: 2, Records: 11, Refused: map[string]uint64{"prefix": 2, "identity": 1}, Revision: 32, Path: path(agent.PathUp, 1.5, 12.25)},
				{Name: nasty, ID: 5, Connected: true, FromSnapshot: true, Path: agent.PathStatus{State: agent.PathUnknown}},
			},
			Tables: []agent.TableStatus{{Name: "services", Wanted: 2, Pending: 1, Held: 3, Errors: 4}},
			Health: agent.HealthStatus{Targets: 6, IntervalMS: 300, Probes: 1000, Misses: 12, NodesDown: 3, ClustersDown: 1,
				Gossip: &agent.GossipStatus{Members: 5, Nodes: 6, Verdicts: true, Chosen: 4},
				Down:   []agent.DownStatus{{Cluster: "azure", Node: "n1", By: []string{"n1", "n3", "n4"}}, {Cluster: "azure", Node: "n2"}, {Cluster: "edge", Node: nasty, By: []string{nasty}}}},
			Pods: 1, Services: 2, Endpoints: endpointStates(), Unmanaged: unmanagedPods(), Details: map[string]string{"wireguard": "kernel", nasty: nasty},
			Drains:   agentDrains(),
			Problems: []agent.ProblemStatus{{What: "cluster azure is not in reach", Why: "connection refused", Fix: "check its mesh API server"}, {What: nasty}},
		},
		"/v1/services": map[string]any{"apiVersion": agent.APIVersion, "kind": "ServiceList", "items": []agent.ServiceSummary{
			{Namespace: "shop", Name: "cart", Global: true, Affinity: "local", Frontends: []string{"172.20.0.10:80/tcp"}, Clusters: []string{"aws", "gcp"}, Backends: 4},
			{Namespace: "shop", Name: nasty, Frontends: []string{}, Clusters: []string{}},
		}},
		"/v1/services/shop/cart": agent.ServiceExplanation{APIVersion: agent.APIVersion, Kind: "ServiceExplanation", Namespace: "shop", Name: "cart",
			Found: true, Global: true, Affinity: "local", Text: "service shop/cart: global, affinity local\n  gcp: weight 1\x1b[31m\n"},
	}
	paths["/v1/endpoints"] = endpointList()
	for _, name := range agent.TableNames() {
		paths["/v1/tables/"+name] = ""
	}
	priority := 3
	paths["/v1/policy"] = trace.PolicyList{APIVersion: agent.APIVersion, Kind: "PolicyList", Items: []trace.PolicySummary{
		{Name: "floor", Tier: "Admin", Priority: &priority, Selects: "pods", Pods: 2, EgressRules: 1},
		{Namespace: "shop", Name: nasty, Tier: "NetworkPolicy", Isolates: []string{"ingress", "egress"}, Refused: true, Problems: []string{"the pods it selects are isolated: " + nasty}},
	}}
	paths["/v1/policy/trace"] = trace.Answer{APIVersion: agent.APIVersion, Kind: "PolicyTrace", Verdict: trace.Denied, Why: nasty,
		From: trace.EndText{Kind: trace.KindPod, Name: "shop/" + nasty, Identity: "1:5"}, To: trace.EndText{Kind: trace.KindWorld, Name: "world", Identity: "0:2"},
		Protocol: "tcp", Port: 5432, Egress: trace.Side{Verdict: trace.Denied, Why: nasty}, Ingress: trace.Side{Verdict: trace.Allowed}, Notes: []string{nasty}}
	paths["/v1/tables/services"] = "172.20.0.10:80/tcp id=1\n172.20.0.11:80/tcp id=2\x1b[2J\n"
	return paths
}

func agentDrains() (out []agent.DrainStatus) {
	for _, d := range drainStatuses() {
		out = append(out, drainOf(d))
	}
	return out
}

// drainStatuses are one that is done, one on its way, and one on its way back.
func drainStatuses() []*pb.DrainStatus {
	began := testNow.Add(-2 * time.Minute).UnixNano()
	return []*pb.DrainStatus{
		{Cluster: "aws", ByItself: true, Left: 26214, Drain: &pb.Drain{Start: began, Over: int64(200 * time.Second), From: 65535}},
		{Cluster: "gcp", Drain: &pb.Drain{Start: began, Over: int64(time.Minute), From: 65535, By: nasty}},
		{Cluster: "gcp", Service: "shop/cart", Left: 39321, Drain: &pb.Drain{Start: began, Over: int64(200 * time.Second), Back: true}},
	}
}

func endpointStates() []agent.EndpointStatus {
	at := func(texts ...string) (out []netip.Addr) {
		for _, text := range texts {
			out = append(out, netip.MustParseAddr(text))
		}
		return out
	}
	return []agent.EndpointStatus{
		{Addresses: at("10.1.1.9"), State: agent.EndpointDisconnecting},
		{Namespace: "shop", Name: nasty, UID: "u1", Addresses: at("10.1.1.10"), State: agent.EndpointCreating},
		{Namespace: "shop", Name: "db", UID: "u2", Addresses: at("10.1.1.11", "fd00:1::b"), State: agent.EndpointReady},
		{Namespace: "shop", Name: "web", UID: "u3", Addresses: at("10.1.1.12"), State: agent.EndpointReady},
	}
}

func unmanagedPods() []agent.UnmanagedPod {
	return []agent.UnmanagedPod{{Namespace: "kube-system", Name: "old"}, {Namespace: "shop", Name: nasty}}
}

func endpointList() agent.EndpointList {
	list := agent.EndpointList{APIVersion: agent.APIVersion, Kind: "EndpointList", Node: "n1", Unmanaged: unmanagedPods()}
	closed, open := agent.EndpointPolicyStatus{Mode: agent.PolicyClosed}, agent.EndpointPolicyStatus{Mode: agent.PolicyOpen}
	for _, e := range endpointStates() {
		list.Items = append(list.Items, agent.EndpointSummary{EndpointStatus: e, Ingress: closed, Egress: closed})
	}
	db, web := &list.Items[2], &list.Items[3]
	db.Identity, db.Labels = "1:5", map[string]string{"app": "db", "x": nasty, "tombolo.io/cluster": "aws", "tombolo.io/namespace": "shop", "namespace:team": "a", "tombolo.io/serviceaccount": "default"}
	db.Ingress, db.Egress = agent.EndpointPolicyStatus{Mode: agent.PolicyIsolated, Policies: []string{"NetworkPolicy shop/db"}}, open
	web.Identity, web.Ingress, web.Egress = "1:6", open, agent.EndpointPolicyStatus{Mode: agent.PolicyRules, Policies: []string{"ClusterNetworkPolicy floor"}}
	return list
}

func path(state agent.PathState, ms, loss float64) agent.PathStatus {
	return agent.PathStatus{State: state, RoundTripMS: &ms, LossPercent: &loss}
}

func serverStatus() *pb.StatusResponse {
	prefix := &pb.Prefix{Address: []byte{10, 2, 0, 0}, Bits: 16}
	return &pb.StatusResponse{
		Cluster: &pb.Cluster{Name: "aws", Id: 1}, Fingerprint: "aa11", Leader: true, StoreId: 0xbeef, Revision: 42, Keys: 34, Store: "embedded etcd in /var/lib/tombolo/apiserver/etcd",
		CertificateExpires: testNow.Add(24 * time.Hour).UnixNano(), Records: map[string]int64{"export/service": 1, "export/node": 2}, Version: "v1", Nodes: []string{"n1", "n2"},
		Problems: []*pb.Problem{
			{Object: "Service shop/cart", What: "its annotations are refused", Why: "tombolo.io/affinity: \"" + nasty + "\" is not local, remote or none", Fix: "correct them; what they said before stays in force"},
			{Object: "file cart.yaml", What: "not read", Why: "line 3: " + nasty, Fix: "repair it; its last good content stays in force"},
		},
		MeshPeers: []*pb.MeshPeerStatus{
			{Name: "gcp", Wish: "joins", Created: testNow.Add(-49 * time.Hour).UnixNano(), Conditions: []*pb.Condition{
				{Type: "Joined", Status: "True", Reason: "Joined", Message: "both clusters have stored one another", Since: testNow.Add(-48 * time.Hour).UnixNano()},
				{Type: "Reachable", Status: "True", Reason: "Connected"}, {Type: "Synced", Status: "False", Reason: "NotBelieved", Message: nasty}}},
			{Name: "oci", Wish: "invites", Created: testNow.Add(-time.Minute).UnixNano(), Conditions: []*pb.Condition{
				{Type: "Joined", Status: "False", Reason: "Invited", Message: "the token in Secret oci-token waits"}, {Type: "Reachable", Status: "Unknown", Reason: "NotJoined"}}},
			{Name: nasty, Wish: "stands", Leaving: true},
		},
		Drains: drainStatuses(),
		Peers: []*pb.PeerStatus{
			{Peer: &pb.Peer{Name: "gcp", Id: 2, MeshAddresses: []string{"198.51.100.7:9443"}, PodPrefixes: []*pb.Prefix{prefix}, Joined: testNow.Add(-49 * time.Hour).UnixNano()},
				Fingerprint: strings.Repeat("bb", 32), Reachable: true, LastSeen: testNow.UnixNano(), Readers: 3},
			{Peer: &pb.Peer{Name: nasty, Id: 3, Joined: testNow.Add(-time.Minute).UnixNano()}, Error: "dial: " + nasty, LastSeen: testNow.Add(-30 * time.Second).UnixNano()},
		},
	}
}

// answering are all command lines that answer, with the kind of their JSON.
var answering = []struct{ line, kind string }{
	{"status", "Status"},
	{"service list", "ServiceList"},
	{"service explain shop/cart", "ServiceExplanation"},
	{"endpoints", "EndpointList"},
	{"policy trace shop/web shop/db 5432", "PolicyTrace"},
	{"policy trace -f testdata/policy shop/web shop/db 5432", "PolicyTrace"},
	{"policy list", "PolicyList"},
	{"policy list -f testdata/policy -n shop", "PolicyList"},
	{"maps", "Tables"},
	{"maps services", "Tables"},
	{"mesh list", "PeerList"},
	{"mesh status", "MeshStatus"},
	{"mesh records", "Records"},
	{"mesh invite --ttl 1h", "Invitation"},
	{"mesh join token", "Join"},
	{"mesh join token --dry-run", "Join"},
	{"mesh leave --force", "Leave"},
	{"mesh remove gcp", "Remove"},
	{"mesh drain gcp", "Drain"},
	{"mesh undrain gcp", "Drain"},
	{"mesh confirm-deletes service", "ConfirmedDeletes"},
	{"node invite n1", "NodeToken"},
}

func TestAnswers(t *testing.T) {
	for _, c := range answering {
		name := strings.NewReplacer(" ", "-", "/", "-").Replace(c.line)
		t.Run(name, func(t *testing.T) {
			w := goodWorld(t)
			text := w.at(t, strings.Fields(c.line)...)
			if text.status != 0 {
				t.Fatalf("status %d: %s", text.status, text.errOut)
			}
			golden(t, "text/"+name+".txt", text.out+"--- standard error\n"+text.errOut)
			if bad := strings.IndexFunc(text.out+text.errOut, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); bad >= 0 {
				t.Errorf("unescaped character in text at byte %d:\n%q", bad, text.out)
			}

			doc := w.at(t, append(strings.Fields(c.line), "-o", "json")...)
			if doc.status != 0 || doc.errOut != "" {
				t.Fatalf("-o json: status %d: %s", doc.status, doc.errOut)
			}
			goldenJSON(t, "json/"+name+".json", doc.out)
			var head struct{ APIVersion, Kind string }
			if err := json.Unmarshal([]byte(doc.out), &head); err != nil || head.APIVersion != apiVersion || head.Kind != c.kind {
				t.Errorf("%v; apiVersion %q, kind %q, want %q, %q", err, head.APIVersion, head.Kind, apiVersion, c.kind)
			}
			if strings.ContainsFunc(doc.out, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) {
				t.Errorf("unescaped characters in JSON")
			}
		})
	}
}

// Both programs of one mesh write the same version into their documents.
func TestOneAPIVersion(t *testing.T) {
	if agent.APIVersion != apiVersion {
		t.Errorf("agent %q, command line %q", agent.APIVersion, apiVersion)
	}
}

func TestVersion(t *testing.T) {
	got := at(t, nil, "version", "-o", "json")
	var doc map[string]string
	if err := json.Unmarshal([]byte(got.out), &doc); err != nil || doc["kind"] != "Version" || doc["version"] == "" || doc["platform"] == "" {
		t.Errorf("%v: %s", err, got.out)
	}
	if got := at(t, nil, "version"); !strings.HasPrefix(got.out, "tombolo ") {
		t.Errorf("got %q", got.out)
	}
}

// What is asked reaches the mesh API server as it was typed.
func TestRequests(t *testing.T) {
	for _, c := range []struct {
		line string
		want proto.Message
	}{
		{"mesh invite", &pb.InviteRequest{TtlSeconds: 600}},
		{"mesh join T --dry-run", &pb.JoinMeshRequest{Token: "T", DryRun: true}},
		{"mesh join T", &pb.JoinMeshRequest{Token: "T"}},
		{"mesh remove gcp", &pb.RemovePeerRequest{Cluster: "gcp"}},
		{"mesh drain gcp", &pb.DrainRequest{Cluster: "gcp", Over: int64(5 * time.Minute)}},
		{"mesh drain gcp --service shop/cart --over 10s", &pb.DrainRequest{Cluster: "gcp", Service: "shop/cart", Over: int64(10 * time.Second)}},
		{"mesh undrain gcp", &pb.DrainRequest{Cluster: "gcp", Over: int64(30 * time.Second), Back: true}},
		{"mesh remove --force gcp", &pb.RemovePeerRequest{Cluster: "gcp", Force: true}},
		{"mesh records export/", &pb.DumpRequest{Prefix: "export/"}},
		{"mesh confirm-deletes", &pb.ConfirmDeletesRequest{}},
		{"node invite n1 --ttl 90s", &pb.NodeTokenRequest{Node: "n1", TtlSeconds: 90}},
	} {
		w := goodWorld(t)
		if got := w.at(t, strings.Fields(c.line)...); got.status != 0 {
			t.Errorf("%s: %s", c.line, got.errOut)
			continue
		}
		if len(w.admin.asked) != 1 || !proto.Equal(w.admin.asked[0].(proto.Message), c.want) {
			t.Errorf("%s asked %v, want %v", c.line, w.admin.asked, c.want)
		}
	}
}

// A peer that was not told is still a peer, unless that was forced.
func TestLeaveUntold(t *testing.T) {
	for _, line := range []string{"mesh leave", "mesh leave -o json"} {
		w := goodWorld(t)
		got := w.at(t, strings.Fields(line)...)
		want := "error: still joined with azure\ncause: it could not be told\n"
		if got.status != 1 || !strings.Contains(got.out, "gcp") || !strings.HasPrefix(got.errOut, want) || !strings.Contains(got.errOut, "tombolo mesh remove aws") {
			t.Errorf("%s: %+v", line, got)
		}
	}
}

// While a server waits for its CA there is none, and that is said.
func TestStatusWithoutCA(t *testing.T) {
	w := newWorld(t, nil, &fakeAdmin{status: &pb.StatusResponse{Cluster: &pb.Cluster{Name: "aws", Id: 1}, Problems: []*pb.Problem{{What: "this server waits for its CA"}}}})
	if got := w.at(t, "mesh", "status"); got.status != 0 || !strings.Contains(got.out, "PROBLEM: this server waits for its CA") || !strings.Contains(got.out, "CA           none yet") {
		t.Errorf("%+v", got)
	}
}

// Services are listed without a mesh API server on the node, too.
func TestServicesOfHalf(t *testing.T) {
	got := newWorld(t, agentAnswers(), nil).at(t, "service", "list")
	if got.status != 0 || !strings.Contains(got.out, "cart") || strings.Contains(got.out, "PROBLEM") || got.errOut != "" {
		t.Errorf("%+v", got)
	}
}

// One of the two is enough for status, and it says which was not there.
func TestStatusOfHalf(t *testing.T) {
	onlyServer := newWorld(t, nil, &fakeAdmin{status: serverStatus()}).at(t, "status")
	if onlyServer.status != 0 || !strings.Contains(onlyServer.out, "Mesh API server of aws") || !strings.Contains(onlyServer.errOut, "no such socket") {
		t.Errorf("only a mesh API server: %+v", onlyServer)
	}
	onlyAgent := newWorld(t, agentAnswers(), nil).at(t, "status")
	if onlyAgent.status != 0 || !strings.HasPrefix(onlyAgent.out, "Agent of aws/n1") || onlyAgent.errOut != "" {
		t.Errorf("only an agent: %+v", onlyAgent)
	}
}

func TestOddAgents(t *testing.T) {
	w := newWorld(t, map[string]any{"/v1/status": "not JSON", "/v1/services": "[1]"}, nil)
	for _, line := range []string{"status", "service list", "service list -o json"} {
		if got := w.at(t, strings.Fields(line)...); got.status != 1 || !strings.Contains(got.errOut, "another version?") {
			t.Errorf("%s: %+v", line, got)
		}
	}
	w.agent = map[string]any{"/v1/services": map[string]any{"items": []any{}}}
	if got := w.at(t, "service", "list"); got != (answer{0, "", "this node knows no services\n"}) {
		t.Errorf("no services: %+v", got)
	}
	w.agent["/v1/endpoints"] = map[string]any{"node": "n1", "items": []any{}}
	if got := w.at(t, "endpoints"); got != (answer{0, "", "node n1 has no endpoints\n"}) {
		t.Errorf("no endpoints: %+v", got)
	}
}

func TestNothingHeldNoPeers(t *testing.T) {
	w := newWorld(t, nil, &fakeAdmin{status: &pb.StatusResponse{}})
	if got := w.at(t, "mesh", "list"); got.status != 0 || got.out != "" || !strings.Contains(got.errOut, "tombolo mesh invite") {
		t.Errorf("no peers: %+v", got)
	}
	if got := w.at(t, "mesh", "list", "-o", "json"); !strings.Contains(got.out, `"items": []`) {
		t.Errorf("no peers in JSON: %+v", got)
	}
}

func TestPrintable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.String().Draw(t, "s")
		got := printable(s)
		if strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Fatalf("printable(%q) = %q", s, got)
		}
		if !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) && got != s {
			t.Fatalf("plain text was changed: %q became %q", s, got)
		}
		if text := printableText(s); strings.Count(text, "\n") != strings.Count(s, "\n") {
			t.Fatalf("lines were lost: %q", text)
		}
	})
}

func TestSpan(t *testing.T) {
	c := &cli{env: environment{Now: func() time.Time { return testNow }}}
	for _, x := range []struct {
		d    time.Duration
		want string
	}{{-time.Second, "0s"}, {0, "0s"}, {119 * time.Second, "119s"}, {2 * time.Minute, "2m"}, {119 * time.Minute, "119m"}, {2 * time.Hour, "2h"}, {47 * time.Hour, "47h"}, {48 * time.Hour, "2d"}, {999 * time.Hour, "41d"}} {
		if got := c.span(testNow.Add(-x.d)); got != x.want {
			t.Errorf("%v: %s, want %s", x.d, got, x.want)
		}
	}
}

func TestCompletion(t *testing.T) {
	w := goodWorld(t)
	for _, c := range []struct {
		line string
		want []string
	}{
		{"mesh remove ", []string{"gcp"}},
		{"service explain ", []string{"shop/cart"}},
		{"maps ", agent.TableNames()},
		{"completion ", []string{"bash", "zsh", "fish"}},
		{"status -o ", []string{"json"}},
		{"me", []string{"mesh"}},
		{"help mesh ", []string{"invite", "join", "records"}},
		{"mesh confirm-deletes ", []string{"pod", "namespace", "networkpolicy", "node", "service", "endpointslice"}},
	} {
		words := strings.Split(c.line, " ")
		got := w.at(t, append([]string{"__complete"}, words...)...)
		var offered []string
		for line := range strings.Lines(got.out) {
			name, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
			offered = append(offered, name)
		}
		for _, want := range c.want {
			if !slices.Contains(offered, want) {
				t.Errorf("%q offers %v, not %q", c.line, offered, want)
			}
		}
		if strings.Contains(got.out, "\x1b") {
			t.Errorf("%q: a name from elsewhere reaches the shell unescaped: %q", c.line, got.out)
		}
	}
	for shell, mark := range map[string]string{"bash": "complete -o default -F __start_tombolo tombolo", "zsh": "#compdef tombolo", "fish": "complete -c tombolo"} {
		if got := at(t, nil, "completion", shell); got.status != 0 || !strings.Contains(got.out, mark) {
			t.Errorf("%s: status %d, %d bytes without %q", shell, got.status, len(got.out), mark)
		}
	}
	// Without anybody to ask, nothing is offered and nothing breaks.
	for _, words := range [][]string{{"mesh", "remove", ""}, {"service", "explain", ""}} {
		got := newWorld(t, nil, nil).at(t, append([]string{"__complete"}, words...)...)
		if got.status != 0 || !strings.HasPrefix(got.out, ":") {
			t.Errorf("%v: %+v", words, got)
		}
	}
}
