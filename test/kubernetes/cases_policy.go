package main

import "fmt"

var policyCases = []Case{
	{Name: "policy", Claim: "NetworkPolicy holds within a cluster: who is not allowed does not get through, also to the service; without it everybody does", Run: policyWithin},
	{Name: "policy-across", Claim: "NetworkPolicy holds for pods of the other cluster, by their labels and their cluster", Run: policyAcross},
	{Name: "policy-egress", Claim: "egress rules hold, also through a global service", Run: policyEgress},
}

// onlyFrom lets nobody in to app=web but what a peer selects.
const onlyFrom = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress: [{from: [%s], ports: [{port: 9000}]}]
`

// each pod's addresses on a port, as targets.
func targets(pods []*Pod, port int) []string {
	var out []string
	for _, p := range pods {
		for _, ip := range p.IPs() {
			out = append(out, hostPort(ip, port))
		}
	}
	return out
}

func (p *Pod) allowed(t *T, what, target string) {
	t.Within(settle, fmt.Sprintf("%s reaches %s", p, what), func() error {
		_, err := p.Ask(t.ctx, 1, "tcp", target)
		return err
	})
}

func policyWithin(t *T) {
	ns := t.Namespace()
	for _, c := range t.Clusters {
		svc := c.Service(t, ns, "web")
		servers := c.Deploy(t, ns, "web", int32(len(c.Nodes)))
		last := c.Nodes[len(c.Nodes)-1]
		friend := c.Pod(t, ns, "friend", On(last), Label("role", "friend"))
		stranger := c.Pod(t, ns, "stranger", On(last), Label("role", "stranger"))
		all := append(targets(servers, 9000), hostPort(svc.Spec.ClusterIP, 9000))
		for _, target := range all {
			stranger.allowed(t, target+" before there is a policy", target)
		}
		c.Apply(t, ns, onlyFrom, "{podSelector: {matchLabels: {role: friend}}}")
		for _, target := range all {
			stranger.Refused(t, target, target)
			friend.allowed(t, target, target)
		}
		friend.Refused(t, "a port that is not allowed", targets(servers, 8080)[0])
		c.Delete(t, "networking.k8s.io/v1", "NetworkPolicy", ns, "web")
		for _, target := range all {
			stranger.allowed(t, target+" after the policy is gone", target)
		}
	}
}

func policyAcross(t *T) {
	ns := t.Namespace()
	a, b := t.Clusters[0], t.Clusters[1]
	servers := b.Deploy(t, ns, "web", int32(len(b.Nodes)))
	friend := a.Pod(t, ns, "friend", Label("role", "friend"))
	stranger := a.Pod(t, ns, "stranger", Label("role", "stranger"))
	own := b.Pod(t, ns, "friend", Label("role", "friend"))
	b.Apply(t, ns, onlyFrom, fmt.Sprintf("{podSelector: {matchLabels: {role: friend, tombolo.io/cluster: %s}}}", a.Name))
	for _, target := range targets(servers, 9000) {
		stranger.Refused(t, target, target)
		friend.allowed(t, target, target)
		own.Refused(t, target+" of which another cluster's pods are the friends", target)
	}
	b.Apply(t, ns, onlyFrom, "{podSelector: {matchLabels: {role: friend}}}")
	for _, target := range targets(servers, 9000) {
		own.allowed(t, target, target)
		friend.Refused(t, target+", whose policy means its own cluster's pods", target)
	}
}

func policyEgress(t *T) {
	ns := t.Namespace()
	a, b := t.Clusters[0], t.Clusters[1]
	_, services := t.Everywhere(ns, "web", 1, Global())
	client := a.Pod(t, ns, "client", Label("role", "client"))
	ip := services[0].Spec.ClusterIP
	client.answeredBy(t, settle, ip, a.Name, b.Name)
	a.Apply(t, ns, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: client}
spec:
  podSelector: {matchLabels: {role: client}}
  policyTypes: [Egress]
  egress: [{to: [{podSelector: {matchLabels: {app: web, tombolo.io/cluster: %s}}}]}]
`, b.Name)
	own := a.Ready(t, ns, "web", 1)
	for _, target := range targets(own, 9000) {
		client.Refused(t, "its own cluster's web", target)
	}
	for _, target := range targets(b.Ready(t, ns, "web", 1), 9000) {
		client.allowed(t, "the other cluster's web", target)
	}
}
