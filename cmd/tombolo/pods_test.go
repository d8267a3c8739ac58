package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
	"github.com/tombolo-mesh/tombolo/cmd/internal/relay"
	"github.com/tombolo-mesh/tombolo/cmd/internal/relay/pod"
	"github.com/tombolo-mesh/tombolo/cmd/internal/relay/pod/podtest"
)

// inPods puts worlds into pods: a mesh API server each, and an agent on a node
// each; nil is one whose node is silent. It returns the variables with which a
// command finds them.
func inPods(t *testing.T, namespace string, worlds ...*world) (*podtest.Server, map[string]string) {
	t.Helper()
	sockets := map[string]string{}
	var pods []corev1.Pod
	for i, w := range worlds {
		server, agent, node := fmt.Sprintf("apiserver-%d", i), fmt.Sprintf("agent-%d", i), fmt.Sprintf("n%d", i+1)
		pods = append(pods, podtest.Pod(namespace, server, pod.APIServer.Label, pod.APIServer.Container, node),
			podtest.Pod(namespace, agent, pod.Agent.Label, pod.Agent.Container, node))
		if w == nil {
			continue
		}
		sockets[server], sockets[agent] = w.vars["TOMBOLO_APISERVER_SOCKET"], w.vars["TOMBOLO_AGENT_SOCKET"]
	}
	s := &podtest.Server{Pods: pods, Run: func(name, _ string, command []string, s podtest.Streams) (int, error) {
		if want := map[string]string{"api": "tombolo-apiserver relay", "age": "tombolo-agent relay"}[name[:3]]; strings.Join(command, " ") != want {
			return 0, fmt.Errorf("pod %s: command %q", name, command)
		}
		if sockets[name] == "" {
			<-t.Context().Done()
			return 1, nil
		}
		if relay.Run(context.Background(), sockets[name], s.In, s.Out) != nil {
			return 1, nil
		}
		return 0, nil
	}}
	return s, map[string]string{"KUBECONFIG": s.Start(t, "aws", "gcp")}
}

// Every command that answers gives the same answer through pods.
func TestAnswersThroughPods(t *testing.T) {
	for _, c := range answering {
		if strings.Contains(c.line, " -f ") || c.line == "version" {
			continue
		}
		t.Run(strings.NewReplacer(" ", "-", "/", "-").Replace(c.line), func(t *testing.T) {
			for _, more := range []string{"", " -o json"} {
				words := strings.Fields(c.line + more)
				here := goodWorld(t)
				want := here.at(t, words...)
				there := goodWorld(t)
				_, vars := inPods(t, defaultNamespace, there)
				got := at(t, vars, append(words, "--context", "gcp", "--node", "n1")...)
				if got != want {
					t.Errorf("through pods:\n%+v\nhere:\n%+v", got, want)
				}
				if !slices.EqualFunc(there.admin.asked, here.admin.asked, func(a, b any) bool { return proto.Equal(a.(proto.Message), b.(proto.Message)) }) {
					t.Errorf("asked %v, here %v", there.admin.asked, here.admin.asked)
				}
			}
		})
	}
}

// All calls of a command go through one exec.
func TestOneExecPerCommand(t *testing.T) {
	s, vars := inPods(t, "mesh", goodWorld(t))
	if got := at(t, vars, "maps", "--context", "aws", "-n", "mesh"); got.status != 0 {
		t.Fatal(got.errOut)
	}
	if execs := s.Execs(); len(execs) != 1 {
		t.Errorf("%q", execs)
	}
}

// Of several mesh API servers the leader is asked, and without one any.
func TestLeaderIsAsked(t *testing.T) {
	follower := func() *world {
		return newWorld(t, nil, &fakeAdmin{status: &pb.StatusResponse{Cluster: &pb.Cluster{Name: "aws", Id: 1}}})
	}
	leader := newWorld(t, nil, &fakeAdmin{status: serverStatus()})
	_, vars := inPods(t, defaultNamespace, follower(), leader, follower())
	if got := at(t, vars, "mesh", "confirm-deletes", "--context", "aws"); got.status != 0 {
		t.Fatal(got.errOut)
	}
	if n := len(leader.admin.asked); n != 2 { // whether it leads, and the call
		t.Errorf("the leader was asked %d times", n)
	}
	one, other := follower(), follower()
	_, vars = inPods(t, defaultNamespace, one, other)
	if got := at(t, vars, "mesh", "invite", "--context", "aws"); got.status != 0 || len(one.admin.asked)+len(other.admin.asked) != 3 {
		t.Errorf("%+v, asked %v and %v", got, one.admin.asked, other.admin.asked)
	}
}

// A replica that cannot be reached is passed over.
func TestDeadReplicaIsPassedOver(t *testing.T) {
	_, vars := inPods(t, defaultNamespace, newWorld(t, nil, nil), newWorld(t, nil, &fakeAdmin{status: serverStatus()}))
	if got := at(t, vars, "mesh", "status", "--context", "aws"); got.status != 0 || !strings.Contains(got.out, "Mesh API server of aws") {
		t.Errorf("%+v", got)
	}
}

// One on a node without power, which Kubernetes still takes for ready, is not waited
// for when the leader has answered.
func TestSilentReplicaIsNotWaitedFor(t *testing.T) {
	_, vars := inPods(t, defaultNamespace, nil, newWorld(t, nil, &fakeAdmin{status: serverStatus()}))
	answered := make(chan answer, 1)
	go func() { answered <- at(t, vars, "mesh", "status", "--context", "aws") }()
	select {
	case got := <-answered:
		if got.status != 0 || !strings.Contains(got.out, "Mesh API server of aws") {
			t.Errorf("%+v", got)
		}
	case <-time.After(10 * time.Second):
		t.Error("it waits for the silent one")
	}
}

// Without a node, all agents are asked for pods that are not managed; one that does
// not answer is named.
func TestUnmanagedPodsOfTheCluster(t *testing.T) {
	node := func(names ...string) *world {
		st := agent.Status{Node: "x"}
		for _, name := range names {
			st.Unmanaged = append(st.Unmanaged, agent.UnmanagedPod{Namespace: "shop", Name: name})
		}
		return newWorld(t, map[string]any{"/v1/status": st}, &fakeAdmin{status: serverStatus()})
	}
	_, vars := inPods(t, defaultNamespace, node("b", "a"), node(), newWorld(t, nil, nil), node("c"))
	got := at(t, vars, "status", "--context", "aws")
	for _, want := range []string{"Mesh API server of aws", "NOT MANAGED: 3 pods of the cluster", "  n1: shop/b, shop/a\n  n4: shop/c\n", "not known of node n3: cannot reach the agent in pod agent-2"} {
		if !strings.Contains(got.out, want) {
			t.Errorf("lacks %q:\n%s%s", want, got.out, got.errOut)
		}
	}
	got = at(t, vars, "status", "--context", "aws", "-o", "json")
	if got.status != 0 || !strings.Contains(got.out, `"name": "c"`) || !strings.Contains(got.out, `"error": "cannot reach`) {
		t.Errorf("%+v", got)
	}
	_, vars = inPods(t, defaultNamespace, node(), node())
	if got = at(t, vars, "status", "--context", "aws"); !strings.Contains(got.out, "No pod is without Tombolo, say the agents of 2 nodes") {
		t.Errorf("%+v", got)
	}
	if got = at(t, vars, "status", "--context", "aws", "--node", "n1"); strings.Contains(got.out, "say the agents") {
		t.Errorf("all were asked although a node was named: %s", got.out)
	}
}

func TestFlowsThroughPods(t *testing.T) {
	var asked string
	w := newWorld(t, map[string]any{"/v1/flows": flowServer(&asked)}, nil)
	_, vars := inPods(t, defaultNamespace, w)
	here := w.at(t, "flows")
	if got := at(t, vars, "flows", "--context", "aws"); got != here || got.status != 0 || got.out == "" {
		t.Errorf("%+v\nhere: %+v", got, here)
	}
}

func TestPodErrors(t *testing.T) {
	_, two := inPods(t, defaultNamespace, goodWorld(t), goodWorld(t))
	_, dead := inPods(t, defaultNamespace, newWorld(t, nil, nil))
	for _, c := range []struct {
		vars   map[string]string
		line   string
		status int
		says   []string
	}{
		{two, "maps --context azure", 1, []string{`has no context "azure"`, "fix: give one of aws, gcp"}},
		{two, "mesh list --context azure", 1, []string{"fix: give one of aws, gcp"}},
		{two, "maps --context aws", 2, []string{"2 nodes have an agent there: give --node, one of n1, n2"}},
		{two, "maps --context aws --node n3", 1, []string{`no agent runs on node "n3"`, "one of the nodes n1, n2"}},
		{two, "mesh list --context aws -n other", 1, []string{"namespace other of context", "give -n with one of tombolo-system"}},
		{two, "maps --context aws --agent-socket /x", 2, []string{"--agent-socket is a socket of this machine"}},
		{two, "mesh list --kubeconfig /nowhere", 1, []string{"there is no kubeconfig /nowhere"}},
		{nil, "mesh list --context aws", 1, []string{"there is no kubeconfig", "--kubeconfig or KUBECONFIG"}},
		{dead, "maps --context aws", 1, []string{"cannot reach the agent in pod agent-0 of context \"aws\"", "there is no socket"}},
		{dead, "mesh invite --context aws", 1, []string{"cannot reach the mesh API server in pod apiserver-0", "there is no socket"}},
		{dead, "status --context aws", 1, []string{"give --node NAME", "cannot reach the mesh API server in pod"}},
	} {
		got := at(t, c.vars, strings.Fields(c.line)...)
		if got.status != c.status || got.out != "" {
			t.Errorf("%s: status %d, want %d; standard output %q", c.line, got.status, c.status, got.out)
		}
		for _, want := range c.says {
			if !strings.Contains(got.errOut, want) {
				t.Errorf("%s: lacks %q:\n%s", c.line, want, got.errOut)
			}
		}
	}
}

func TestCompletionOfContextsAndNodes(t *testing.T) {
	_, vars := inPods(t, defaultNamespace, goodWorld(t), goodWorld(t))
	for line, want := range map[string]string{
		"__complete mesh list --context ":                "aws\ngcp\n:4\n",
		"__complete maps --context aws --node ":          "n1\nn2\n:4\n",
		"__complete mesh remove --context aws ":          "gcp\n:4\n",
		"__complete service explain --context x --node ": ":4\n",
	} {
		if got := at(t, vars, append(strings.Fields(line), "")...); got.out != want {
			t.Errorf("%s: %q, want %q", line, got.out, want)
		}
	}
}
