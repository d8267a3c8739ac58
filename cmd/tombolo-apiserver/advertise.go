package main

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// advertised are the addresses of the mesh port, each written the one way there
// is, so that equal ones are seen to be equal. An address alone, as Kubernetes
// tells a pod those of its node, takes the port of --listen. Brackets go where the
// address is no IPv6: some readers refuse them there.
func advertised(entries []string, listen string) (out []string, err error) {
	for _, text := range entries {
		host, port, err := net.SplitHostPort(text)
		if err != nil {
			if _, e := netip.ParseAddr(text); e != nil {
				return nil, fmt.Errorf("--advertise: %q is neither host:port nor an IP address", text)
			}
			host = text
			if _, port, err = net.SplitHostPort(listen); err != nil {
				return nil, fmt.Errorf("--listen: %w", err)
			}
		}
		if a, err := netip.ParseAddr(host); err == nil {
			host = a.Unmap().String()
		}
		if text = net.JoinHostPort(host, port); !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	return out, nil
}
