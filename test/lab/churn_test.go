package lab

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
)

// Agents are killed and started while pods come and go in both clusters. At rest
// every node's tables are what a dumb recomputation says.
func TestChurn(t *testing.T) {
	t.Parallel()
	r := newMesh(t, rigOptions{nodes: 2})
	const seed = 20261123
	random := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d", seed)
	c := must(r.client.Client("watch", patient(tcp(checkout4))))(t)
	defer c.Process.Kill()
	begin := time.Now()
	next, kills, adds, removes := 3, 0, 0, 0
	for time.Since(begin) < 8*time.Second {
		cl := r.Clusters()[random.IntN(2)]
		node := cl.Nodes[random.IntN(2)]
		switch random.IntN(3) {
		case 0: // an agent dies and is born again, on a node where just now nothing is added
			node.Agent().Kill()
			noError(t, node.LaunchAgent(r.ctx))
			kills++
			// The other node's pods change meanwhile.
			other := cl.Nodes[2-node.Number]
			noError(t, other.Ready(r.ctx))
			r.addServer(cl, fmt.Sprintf("checkout-%d", next), other.Number-1)
			next, adds = next+1, adds+1
			noError(t, node.Ready(r.ctx))
		case 1:
			r.addServer(cl, fmt.Sprintf("checkout-%d", next), node.Number-1)
			next, adds = next+1, adds+1
		case 2:
			// The first two stay, so that the service always has a backend.
			if pods := r.servers[cl]; len(pods) > 2 {
				i := 2 + random.IntN(len(pods)-2)
				p := pods[i]
				r.servers[cl] = slices.Delete(pods, i, i+1)
				noError(t, p.Retire())
				if random.IntN(2) == 0 { // dies while its agent does
					p.node.Agent().Kill()
					noError(t, p.node.LaunchAgent(r.ctx))
					kills++
				}
				// A deleted pod lives on for its grace period, which outlasts the news.
				time.Sleep(150 * time.Millisecond)
				noError(t, p.node.Ready(r.ctx))
				noError(t, p.Remove(r.ctx))
				removes++
			}
		}
	}
	for _, cl := range r.Clusters() {
		for _, n := range cl.Nodes {
			noError(t, n.Ready(r.ctx))
		}
	}
	r.eventually(20*time.Second, "all nodes are at rest", r.atRest)
	results := c.Since(begin)
	t.Logf("%d agents killed, %d pods added, %d removed; %d requests, %d failed (%s)", kills, adds, removes, len(results), Failed(results), firstError(results))
	if Failed(results) > len(results)/50 {
		t.Errorf("%d of %d requests failed: %s", Failed(results), len(results), firstError(results))
	}
	r.allOK(must(c.AwaitMore(r.ctx, time.Now(), 50))(t), "")
}

// atRest compares every node's tables with what the test knows it made.
func (r *rig) atRest() error {
	backends := map[string]bool{}
	for _, pods := range r.servers {
		for _, p := range pods {
			for _, a := range p.Addresses {
				backends[netip.AddrPortFrom(a, checkoutPort).String()] = true
			}
		}
	}
	var firstServices, firstSlots string
	for _, c := range r.Clusters() {
		for _, n := range c.Nodes {
			name := c.Name + "/" + n.Name
			tables := r.tables(n)
			// Slots: each backend once for TCP and once for UDP, and none else.
			got := map[string]int{}
			for line := range strings.Lines(tables["slots"]) {
				for _, w := range strings.Fields(line) {
					w = strings.TrimPrefix(w, "backend=")
					if ap, err := netip.ParseAddrPort(w); err == nil {
						got[ap.String()]++
					}
				}
			}
			want := map[string]int{}
			for b := range backends {
				want[b] = 2
			}
			if !maps.Equal(got, want) {
				return fmt.Errorf("%s: slots have %v, wanted %v", name, got, want)
			}
			// Addresses: a row for each pod anywhere but here, and for none that is gone.
			for _, cl := range r.Clusters() {
				for _, other := range cl.Nodes {
					for _, p := range other.pods {
						for _, a := range p.Addresses {
							inIPs, inEndpoints := hasWord(tables["ips"], a.String()), hasWord(tables["endpoints"], a.String())
							if other == n && !inEndpoints {
								return fmt.Errorf("%s: no endpoint %s (%s)", name, a, p.Name)
							}
							if other != n && !inIPs {
								return fmt.Errorf("%s: no address row of %s (%s/%s)", name, a, cl.Name, p.Name)
							}
						}
					}
				}
			}
			if rows, pods := strings.Count(tables["endpoints"], "\n"), 2*len(n.pods); rows < pods {
				return fmt.Errorf("%s: %d endpoints, %d pods", name, rows, pods)
			}
			if live := r.allPodAddresses(); true {
				for _, table := range []string{"ips", "endpoints"} {
					for line := range strings.Lines(tables[table]) {
						a, err := netip.ParseAddr(strings.Fields(line)[0])
						if err == nil && inPodRange(a) && !live[a] {
							return fmt.Errorf("%s: table %s has a row of nobody: %s", name, table, line)
						}
					}
				}
			}
			if rows := tables["node_health"] + tables["cluster_health"]; rows != "" {
				return fmt.Errorf("%s: judged down: %s", name, rows)
			}
			// Nodes of one cluster have the same services, in the same slots.
			if n == c.Nodes[0] {
				firstServices, firstSlots = tables["services"], tables["slots"]
			} else if tables["services"] != firstServices || tables["slots"] != firstSlots {
				return fmt.Errorf("%s differs from the first node of its cluster:\n%s%s\nfirst:\n%s%s", name, tables["services"], tables["slots"], firstServices, firstSlots)
			}
			for _, st := range r.agentStatus(n).Tables {
				if st.Pending+st.Stuck > 0 {
					return fmt.Errorf("%s: table %s is not written: %+v", name, st.Name, st)
				}
			}
		}
	}
	return nil
}

func hasWord(text, word string) bool {
	for _, w := range strings.Fields(text) {
		if w == word {
			return true
		}
	}
	return false
}

// allPodAddresses are those of pods, and of the nodes' own tunnel addresses: the
// first of each prefix.
func (r *rig) allPodAddresses() map[netip.Addr]bool {
	m := map[netip.Addr]bool{}
	for _, c := range r.Clusters() {
		for _, n := range c.Nodes {
			for _, p := range n.PodPrefixes() {
				m[p.Addr()], m[p.Addr().Next()] = true, true
			}
			for _, p := range n.pods {
				for _, a := range p.Addresses {
					m[a] = true
				}
			}
		}
	}
	return m
}

func inPodRange(a netip.Addr) bool {
	return netip.MustParsePrefix("10.0.0.0/12").Contains(a) || netip.MustParsePrefix("fd00::/44").Contains(a)
}

// The plugin as a runtime calls it: twice ADD, CHECK with what ADD said, twice DEL.
func TestCNI(t *testing.T) {
	t.Parallel()
	r := newMesh(t, rigOptions{bare: true, unjoined: true})
	n := r.a.Nodes[0]
	p := must(n.AddPod(r.ctx, PodSpec{Name: "web", Port: 8080}))(t)
	container := p.UID
	call := func(command, previous string) (string, error) {
		conf := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"tombolo","type":"tombolo-cni","socket":%q%s}`, n.Socket(), previous)
		return n.host.run(r.ctx, []string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + container, "CNI_NETNS=" + p.host.netnsPath(), "CNI_IFNAME=eth0",
			"CNI_PATH=" + r.opts.BinDir, fmt.Sprintf("CNI_ARGS=K8S_POD_NAMESPACE=default;K8S_POD_NAME=%s;K8S_POD_UID=%s", p.Name, p.UID)}, conf, filepath.Join(r.opts.BinDir, "tombolo-cni"))
	}
	first := must(call("ADD", ""))(t)
	second := must(call("ADD", ""))(t)
	if first != second {
		t.Errorf("ADD of one UID twice:\n%s\n%s", first, second)
	}
	var result struct {
		IPs []struct{ Address netip.Prefix }
	}
	noError(t, json.Unmarshal([]byte(second), &result))
	for i, ip := range result.IPs {
		if ip.Address.Addr() != p.Addresses[i] {
			t.Errorf("address %d is %s, it was %s", i, ip.Address, p.Addresses[i])
		}
	}
	previous := `,"prevResult":` + second
	must(call("CHECK", previous))(t)
	must(call("STATUS", ""))(t)

	// What CHECK is for: somebody took the address, or the link.
	out, err := p.Run(r.ctx, "ip", "address", "del", p.Addresses[0].String()+"/32", "dev", "eth0")
	if err != nil {
		t.Fatal(out, err)
	}
	_, err = call("CHECK", previous)
	r.wantError(err, p.Addresses[0].String())
	must(call("ADD", ""))(t)
	must(call("CHECK", previous))(t)

	must(call("DEL", previous))(t)
	must(call("DEL", previous))(t)
	_, err = call("CHECK", previous)
	if err == nil {
		t.Error("CHECK is content with a pod that was deleted")
	}
	if pods := string(must(n.Get(r.ctx, "/v1/pods"))(t)); strings.Contains(pods, p.UID) {
		t.Errorf("a deleted pod is listed: %s", pods)
	}
	var s agent.Status
	noError(t, n.GetJSON(r.ctx, "/v1/status", &s))
	if s.Pods != 0 {
		t.Errorf("%d pods", s.Pods)
	}
}
