package apiserver

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

func (d *deriver) setPod(name objectName, pod *corev1.Pod, at clustermesh.Origin) {
	old := d.pods[name]
	if old != nil {
		d.touchServicesOf(old, at)
		d.unindexPod(name, old)
		delete(d.pods, name)
		d.touchPlaced(name, old.pod.Spec.NodeName, nil, at)
	}
	if pod != nil {
		st := &podState{pod: pod}
		d.pods[name] = st
		d.indexPod(name, st)
		d.touchServicesOf(st, at)
		d.touchPlaced(name, pod.Spec.NodeName, claimAddresses(d.claims[name]), at)
	}
	d.touch(podUnit(name), at)
}

func (d *deriver) indexPod(name objectName, st *podState) {
	for k, v := range st.pod.Labels {
		put(d.podsByLabel, labelRef{name.Namespace, k, v}, name, st)
	}
	put(d.podsByNamespace, name.Namespace, name, st)
	if st.pod.Spec.NodeName != "" {
		put(d.podsByNode, st.pod.Spec.NodeName, name, st)
	}
	d.useIdentity(name, st, d.identityText(st.pod))
}

func (d *deriver) unindexPod(name objectName, st *podState) {
	for k, v := range st.pod.Labels {
		remove(d.podsByLabel, labelRef{name.Namespace, k, v}, name)
	}
	remove(d.podsByNamespace, name.Namespace, name)
	remove(d.podsByNode, st.pod.Spec.NodeName, name)
	d.useIdentity(name, st, "")
}

// useIdentity puts a pod under another label text; "" = none.
func (d *deriver) useIdentity(name objectName, st *podState, text string) {
	if st.text != "" {
		remove(d.podsByText, st.text, name)
	}
	if st.text = text; text != "" {
		put(d.podsByText, text, name, st)
		d.unnumbered[text] = true
	}
}

// identityText is "" for a pod that has no identity of its own: one without a
// node, or on its node's network.
func (d *deriver) identityText(pod *corev1.Pod) string {
	if pod.Spec.HostNetwork || pod.Spec.NodeName == "" {
		return ""
	}
	return labelText(securityLabels(d.cfg.Cluster, pod, d.namespaces[pod.Namespace]))
}

func put[I, K comparable, V any](index map[I]map[K]V, at I, key K, value V) {
	m := index[at]
	if m == nil {
		m = make(map[K]V)
		index[at] = m
	}
	m[key] = value
}

func remove[I, K comparable, V any](index map[I]map[K]V, at I, key K) {
	delete(index[at], key)
	if len(index[at]) == 0 {
		delete(index, at)
	}
}

// setNamespace: the labels of a namespace are part of its pods' identities.
func (d *deriver) setNamespace(name string, ns *corev1.Namespace, at clustermesh.Origin) {
	if ns == nil {
		delete(d.namespaces, name)
	} else {
		d.namespaces[name] = ns
	}
	if d.cfg.Namespace != nil {
		d.cfg.Namespace(name, ns != nil)
	}
	for pod, st := range d.podsByNamespace[name] {
		text := d.identityText(st.pod)
		if text == st.text {
			continue
		}
		d.useIdentity(pod, st, text)
		d.touch(podUnit(pod), at)
	}
}

// endpointClaim is what a node registered about a pod.
type endpointClaim struct {
	node, owner string
	addresses   []netip.Addr
	ready       bool
	origin      clustermesh.Origin
}

// nodeClaim is what a node registered about itself.
type nodeClaim struct {
	underlay []netip.Addr
	key      [32]byte
	endpoint string
	port     uint16
	origin   clustermesh.Origin

	gossipKeys []uint64 // IDs of those that its agent holds
}

func (d *deriver) setEndpointClaim(pod objectName, c *endpointClaim, at clustermesh.Origin) {
	touch := func(name objectName) {
		if st := d.pods[name]; st != nil {
			d.touch(podUnit(name), at)
			d.touchServicesOf(st, at)
			d.touchPlaced(name, st.pod.Spec.NodeName, slices.Concat(claimAddresses(d.claims[name]), claimAddresses(c)), at)
		}
	}
	if old := d.claims[pod]; old != nil {
		for _, a := range old.addresses {
			remove(d.claimsByAddress, a, pod)
			for other := range d.claimsByAddress[a] {
				touch(other)
			}
		}
	}
	delete(d.claims, pod)
	for _, a := range claimAddresses(c) {
		put(d.claimsByAddress, a, pod, c)
		for other := range d.claimsByAddress[a] {
			touch(other)
		}
	}
	if c != nil {
		d.claims[pod] = c
	}
	touch(pod)
}

func claimAddresses(c *endpointClaim) []netip.Addr {
	if c == nil {
		return nil
	}
	return c.addresses
}

// holder is the pod that has an address: of several claims, which only a race of
// two replicas can leave, the newest.
func (d *deriver) holder(a netip.Addr) objectName {
	var best objectName
	var found *endpointClaim
	for name, c := range d.claimsByAddress[a] {
		if found == nil || c.origin > found.origin || (c.origin == found.origin && name.String() < best.String()) {
			best, found = name, c
		}
	}
	return best
}

func (d *deriver) setNodeClaim(node string, c *nodeClaim, at clustermesh.Origin) {
	if c == nil {
		delete(d.nodeClaims, node)
	} else {
		d.nodeClaims[node] = c
	}
	d.touchNode(node, at)
}

// claimOf is what its node registered about a pod: nil if nothing, if another
// node did, or if it was about an earlier pod of the same name.
func (d *deriver) claimOf(name objectName, pod *corev1.Pod) *endpointClaim {
	c := d.claims[name]
	if c == nil || c.node != pod.Spec.NodeName || (pod.UID != "" && string(pod.UID) != c.owner) {
		return nil
	}
	return c
}

// finished pods keep their object but have no address any more.
func finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// podAddresses are the addresses under which a pod is reached, and whether it is
// ready. A registration alone gives a pod an address; one on its node's network
// is reached by the node's tunnel addresses.
func (d *deriver) podAddresses(name objectName, pod *corev1.Pod) (addrs []netip.Addr, ready bool) {
	n := d.nodes[pod.Spec.NodeName]
	if n == nil || finished(pod) {
		return nil, false
	}
	claim := d.claimOf(name, pod)
	if pod.Spec.HostNetwork {
		if d.nodeClaims[pod.Spec.NodeName] == nil {
			return nil, false
		}
		probed := false
		if p, _ := readinessProbe(pod); p != nil {
			probed = true
		}
		return n.tunnel, (claim == nil && !probed) || (claim != nil && claim.ready)
	}
	if claim == nil {
		return nil, false
	}
	for _, a := range claim.addresses {
		// The node's prefixes may have changed since it registered.
		if d.ownAddress(n, a) == nil && d.holder(a) == name {
			addrs = append(addrs, a)
		}
	}
	return addrs, claim.ready
}

// ownAddress says why a pod of n cannot have address a; nil = it can.
func (d *deriver) ownAddress(n *nodeState, a netip.Addr) error {
	if d.chained() {
		return d.podAddress(a)
	}
	for i, p := range n.prefixes {
		if !p.Contains(a) {
			continue
		}
		if a == n.tunnel[i] {
			return fmt.Errorf("%s is the node's tunnel address", a)
		}
		return nil
	}
	return fmt.Errorf("%s is outside the node's pod prefixes %v", a, n.prefixes)
}

// derivePod yields a pod's address records and its workload record.
func (d *deriver) derivePod(name objectName, y *yield) {
	st := d.pods[name]
	if st == nil {
		return
	}
	pod := st.pod
	if pod.Spec.NodeName == "" || finished(pod) {
		return
	}
	object := Ref{KindPod, name.Namespace, name.Name}.String()
	claim := d.claimOf(name, pod)
	owner := string(pod.UID)
	if claim != nil {
		owner = claim.owner
	}
	var probe *clustermesh.Probe
	var problem string
	if !d.cfg.SlicesGiven {
		probe, problem = readinessProbe(pod)
	}
	if problem != "" {
		y.problem(Problem{Object: object, What: "its readiness probe is not run", Why: problem,
			Fix: "use a tcpSocket or httpGet probe; until then the pod counts as ready when it is registered"})
	}
	ports, err := hostPorts(pod)
	if err != nil {
		y.problem(Problem{Object: object, What: "a host port is not served", Why: printable(err.Error()), Fix: "correct the port of the container"})
	}
	y.put(clustermesh.ScopeLocal, &clustermesh.Workload{
		Namespace: name.Namespace, Name: name.Name, Node: pod.Spec.NodeName, Owner: owner, Readiness: probe,
		HostNetwork: pod.Spec.HostNetwork, HostPorts: ports, Origin: y.at,
	}, object)
	if pod.Spec.HostNetwork {
		return
	}
	addrs, _ := d.podAddresses(name, pod)
	for _, a := range addrs {
		y.put(clustermesh.ScopeExport, &clustermesh.Address{
			Name:       clustermesh.AddressName{Node: pod.Spec.NodeName, Prefix: netip.PrefixFrom(a, a.BitLen())},
			Identity:   clustermesh.MakeIdentity(d.cfg.ID, d.cfg.Identity(st.text)),
			Owner:      owner,
			NamedPorts: namedPorts(pod),
			Namespace:  name.Namespace,
			Pod:        name.Name,
			Origin:     y.at,
		}, object)
	}
}

// deriveIdentity yields what an identity stands for, while its number is in use.
func (d *deriver) deriveIdentity(text string, y *yield) {
	number := d.cfg.Identity(text)
	if number == 0 {
		return
	}
	y.put(clustermesh.ScopeExport, &clustermesh.IdentityRecord{
		ID: clustermesh.MakeIdentity(d.cfg.ID, number), Labels: parseLabelText(text), Origin: y.at,
	}, fmt.Sprintf("identity %d", number))
}

// touchIdentity: the number of a label set is another, or none any more.
func (d *deriver) touchIdentity(text string, at clustermesh.Origin) {
	d.touch(identityUnit(text), at)
	for pod := range d.podsByText[text] {
		d.touch(podUnit(pod), at)
	}
}
