package etcd

import (
	"fmt"
	"net"
	"strconv"
	"strings"
)

// checkEndpoint refuses what could only fail later, or would go out in the clear.
func checkEndpoint(ep string, secure bool) error {
	scheme, rest, found := strings.Cut(ep, "://")
	if !found {
		scheme, rest = "", ep
	}
	switch scheme {
	case "unix", "unixs":
		if rest == "" {
			return fmt.Errorf("etcd: endpoint %q: no socket path", ep)
		}
		return nil
	case "http", "https", "":
	default:
		return fmt.Errorf("etcd: endpoint %q: unknown scheme %q: use https://, http:// or unix://", ep, scheme)
	}
	host, port, err := net.SplitHostPort(rest)
	if err != nil {
		return fmt.Errorf("etcd: endpoint %q is not host:port: %w", ep, err)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || host == "" {
		return fmt.Errorf("etcd: endpoint %q is not host:port with a port of 1 to 65535", ep)
	}
	if !secure && scheme != "http" {
		return fmt.Errorf("etcd: endpoint %q needs TLS files: without a CA nothing is sent (say http:// to go without TLS)", ep)
	}
	if secure && scheme == "http" {
		return fmt.Errorf("etcd: endpoint %q would go without TLS although a TLS configuration is given: use https://", ep)
	}
	return nil
}

func endpointsText(eps []string) string { return strings.Join(eps, ",") }
