package install

import (
	"bytes"
	"net"
	"net/netip"
	"net/url"
	"strings"
)

// kubeServer is what the kubeconfig says of kube-apiserver.
type kubeServer struct {
	url   string
	ca    []byte // PEM
	proxy bool   // it is reached by way of a proxy
}

// addressForNodes is the host and port of the kubeconfig's server, if nodes can
// be expected to reach the same server there: it is no address of this machine
// alone, no proxy lies between, and its certificate is by the cluster's own CA
// (else it is a gateway in front of the cluster, which takes other credentials).
// Otherwise the chart takes the EndpointSlice.
func addressForNodes(s kubeServer, clusterCA []byte) (host, port string, ok bool) {
	u, err := url.Parse(s.url)
	if err != nil || u.Scheme != "https" || s.proxy || strings.Trim(u.Path, "/") != "" {
		return "", "", false
	}
	host, port = u.Hostname(), u.Port()
	if port == "" {
		port = "443"
	}
	if host == "" || host == "localhost" || strings.HasSuffix(host, ".localhost") || net.ParseIP(host) == nil && !strings.Contains(host, ".") {
		return "", "", false // a name without a dot is one of this machine's, or of a container network
	}
	if a, err := netip.ParseAddr(host); err == nil && (a.IsLoopback() || a.IsUnspecified() || a.IsLinkLocalUnicast()) {
		return "", "", false
	}
	if len(clusterCA) == 0 || !bytes.Equal(bytes.TrimSpace(s.ca), bytes.TrimSpace(clusterCA)) {
		return "", "", false
	}
	return host, port, true
}
