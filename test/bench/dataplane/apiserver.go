package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// apiServer is as much of a Kubernetes API server as kube-proxy's informers
// need: lists of what there is, and watches in which nothing happens. Selectors
// are not looked at: there is nothing that kube-proxy's would leave out.
type apiServer struct {
	lists map[string]any // by path
}

const nodeName = "bench"

// newAPIServer has one node and n services, each with the same backend.
func newAPIServer(w *world, n int) *apiServer {
	meta := metav1.ListMeta{ResourceVersion: "1"}
	services := corev1.ServiceList{TypeMeta: kind("v1", "ServiceList"), ListMeta: meta}
	slices := discoveryv1.EndpointSliceList{TypeMeta: kind("discovery.k8s.io/v1", "EndpointSliceList"), ListMeta: meta}
	for i := range n {
		services.Items = append(services.Items, kubeService(i))
		slices.Items = append(slices.Items, kubeSlice(i, w))
	}
	return &apiServer{map[string]any{
		"/api/v1/services": services,
		"/api/v1/nodes": corev1.NodeList{TypeMeta: kind("v1", "NodeList"), ListMeta: meta, Items: []corev1.Node{{
			ObjectMeta: metav1.ObjectMeta{Name: nodeName, UID: nodeName, ResourceVersion: "1"},
			Spec:       corev1.NodeSpec{PodCIDR: podPrefix.String(), PodCIDRs: []string{podPrefix.String()}},
			Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: tunnelAddress.String()}}},
		}}},
		"/apis/discovery.k8s.io/v1/endpointslices": slices,
		"/apis/networking.k8s.io/v1/servicecidrs":  networkingv1.ServiceCIDRList{TypeMeta: kind("networking.k8s.io/v1", "ServiceCIDRList"), ListMeta: meta},
	}}
}

func kind(version, name string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: version, Kind: name}
}

func serviceName(i int) string { return fmt.Sprintf("service-%d", i) }

func object(i int) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: "bench", Name: serviceName(i), UID: "uid", ResourceVersion: "1"}
}

func kubeService(i int) corev1.Service {
	f := frontend(i)
	single := corev1.IPFamilyPolicySingleStack
	return corev1.Service{ObjectMeta: object(i), Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeClusterIP, ClusterIP: f.Addr().String(), ClusterIPs: []string{f.Addr().String()},
		IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, IPFamilyPolicy: &single,
		Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: int32(f.Port())}},
	}}
}

func kubeSlice(i int, w *world) discoveryv1.EndpointSlice {
	b, node, yes := w.backend(), nodeName, true
	name, proto, port := "http", corev1.ProtocolTCP, int32(b.Port())
	o := object(i)
	o.Labels = map[string]string{discoveryv1.LabelServiceName: o.Name}
	return discoveryv1.EndpointSlice{ObjectMeta: o, AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{b.Addr().String()}, NodeName: &node,
			Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes}}},
		Ports: []discoveryv1.EndpointPort{{Name: &name, Protocol: &proto, Port: &port}}}
}

func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	list, ok := a.lists[r.URL.Path]
	w.Header().Set("Content-Type", "application/json")
	switch {
	case r.Method == http.MethodPost && strings.Contains(r.URL.Path, "/events"):
		w.WriteHeader(http.StatusCreated) // taken, and forgotten
		io.Copy(w, r.Body)
	case r.Method != http.MethodGet || !ok:
		refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound)
	case q.Get("sendInitialEvents") == "true":
		// The client then lists, and watches from there.
		refuse(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid)
	case q.Get("watch") == "true" || q.Get("watch") == "1":
		w.WriteHeader(http.StatusOK)
		http.NewResponseController(w).Flush()
		limit, _ := strconv.Atoi(q.Get("timeoutSeconds"))
		if limit == 0 {
			limit = 3600
		}
		select {
		case <-r.Context().Done():
		case <-time.After(time.Duration(limit) * time.Second):
		}
	default:
		json.NewEncoder(w).Encode(list)
	}
}

func refuse(w http.ResponseWriter, code int32, reason metav1.StatusReason) {
	w.WriteHeader(int(code))
	json.NewEncoder(w).Encode(metav1.Status{TypeMeta: kind("v1", "Status"), Status: metav1.StatusFailure, Reason: reason, Code: code})
}
