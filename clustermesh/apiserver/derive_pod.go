package apiserver

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

func (d *deriver) setPod(name objectName, pod *corev1.Pod, at clustermesh.Origin) {
	old := d.pods[name]
	if old != nil {
		d.touchServicesOf(old, at)
		d.unindexPod(name, old)
		delete(d.pods, name)
	}
	if pod != nil {
		st := &podState{pod: pod}
		d.pods[name] = st
		d.indexPod(name, st)
		d.touchServicesOf(st, at)
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
	origin   clustermesh.Origin
}

func (d *deriver) setEndpointClaim(pod objectName, c *endpointClaim, at clustermesh.Origin) {
	touch := func(name objectName) {
		if st := d.pods[name]; st != nil {
			d.touch(podUnit(name), at)
			d.touchServicesOf(st, at)
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
		if ownAddress(n, a) == nil && d.holder(a) == name {
			addrs = append(addrs, a)
		}
	}
	return addrs, claim.ready
}

// ownAddress says why a pod of n cannot have address a; nil = it can.
func ownAddress(n *nodeState, a netip.Addr) error {
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
	probe, problem := readinessProbe(pod)
	if problem != "" {
		y.problem(Problem{Object: object, What: "its readiness probe is not run", Why: problem,
			Fix: "use a tcpSocket or httpGet probe; until then the pod counts as ready when it is registered"})
	}
	y.put(clustermesh.ScopeLocal, &clustermesh.Workload{
		Namespace: name.Namespace, Name: name.Name, Node: pod.Spec.NodeName, Owner: owner, Readiness: probe, Origin: y.at,
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

func namedPorts(pod *corev1.Pod) []clustermesh.NamedPort {
	var ports []clustermesh.NamedPort
	for _, c := range pod.Spec.Containers {
		for _, p := range c.Ports {
			proto, err := protocolOf(p.Protocol)
			if p.Name == "" || err != nil || p.ContainerPort < 1 || p.ContainerPort > 65535 {
				continue
			}
			ports = append(ports, clustermesh.NamedPort{Name: p.Name, Protocol: proto, Port: uint16(p.ContainerPort)})
		}
	}
	return ports
}

// readinessProbe is that of the first container that has one; problem says why
// it cannot be run by an agent.
func readinessProbe(pod *corev1.Pod) (probe *clustermesh.Probe, problem string) {
	for _, c := range pod.Spec.Containers {
		if c.ReadinessProbe != nil {
			return probeRecord(c, c.ReadinessProbe, pod)
		}
	}
	return nil, ""
}

func probeRecord(c corev1.Container, p *corev1.Probe, pod *corev1.Pod) (*clustermesh.Probe, string) {
	r := &clustermesh.Probe{
		Period:           seconds(p.PeriodSeconds, 10),
		Timeout:          seconds(p.TimeoutSeconds, 1),
		InitialDelay:     seconds(p.InitialDelaySeconds, 0),
		SuccessThreshold: max(1, int(p.SuccessThreshold)),
		FailureThreshold: 3,
	}
	if p.FailureThreshold > 0 {
		r.FailureThreshold = int(p.FailureThreshold)
	}
	var port intstr.IntOrString
	switch {
	case p.TCPSocket != nil:
		r.Kind, port = "tcp", p.TCPSocket.Port
	case p.HTTPGet != nil:
		if p.HTTPGet.Scheme == corev1.URISchemeHTTPS {
			return nil, "it is an httpGet probe over HTTPS"
		}
		r.Kind, port, r.Path = "http", p.HTTPGet.Port, p.HTTPGet.Path
		if r.Path == "" {
			r.Path = "/"
		}
	default:
		return nil, "it is neither a tcpSocket nor an httpGet probe"
	}
	n, ok := resolvePort(port, corev1.ProtocolTCP, []corev1.Container{c})
	if !ok {
		n, ok = resolvePort(port, corev1.ProtocolTCP, pod.Spec.Containers)
	}
	if !ok {
		return nil, fmt.Sprintf("its port %s is no port of the container", printable(port.String()))
	}
	r.Port = n
	return r, ""
}

func seconds(n, unset int32) time.Duration {
	if n <= 0 {
		n = unset
	}
	return time.Duration(n) * time.Second
}

// resolvePort finds the number of a target port, by name among the containers.
func resolvePort(target intstr.IntOrString, proto corev1.Protocol, containers []corev1.Container) (uint16, bool) {
	if target.Type == intstr.Int {
		return uint16(target.IntVal), target.IntVal >= 1 && target.IntVal <= 65535
	}
	for _, c := range containers {
		for _, p := range c.Ports {
			same := p.Protocol == proto || (p.Protocol == "" && proto == corev1.ProtocolTCP)
			if p.Name == target.StrVal && same && p.ContainerPort >= 1 && p.ContainerPort <= 65535 {
				return uint16(p.ContainerPort), true
			}
		}
	}
	return 0, false
}

// protocolOf reads a protocol; unset is TCP.
func protocolOf(p corev1.Protocol) (clustermesh.Protocol, error) {
	switch p {
	case "", corev1.ProtocolTCP:
		return clustermesh.TCP, nil
	case corev1.ProtocolUDP:
		return clustermesh.UDP, nil
	case corev1.ProtocolSCTP:
		return clustermesh.SCTP, nil
	}
	return 0, fmt.Errorf("protocol %q is not one of TCP, UDP, SCTP", printable(string(p)))
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

// derivePolicy yields a NetworkPolicy as JSON, without what changes by itself.
func (d *deriver) derivePolicy(name objectName, y *yield) {
	policy := d.policies[name]
	if policy == nil {
		return
	}
	text, err := json.Marshal(networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: KindNetworkPolicy},
		ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name},
		Spec:       policy.Spec,
	})
	object := Ref{KindNetworkPolicy, name.Namespace, name.Name}.String()
	if err != nil {
		y.problem(Problem{Object: object, What: "its record is not published", Why: printable(err.Error())})
		return
	}
	y.put(clustermesh.ScopeLocal, &clustermesh.Policy{Namespace: name.Namespace, Name: name.Name, JSON: text, Origin: y.at}, object)
}
