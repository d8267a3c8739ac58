package main

import (
	"net/netip"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/cni"
)

// chain adds to a request what the plugins before this one have made, and keeps
// their result: it is this one's as well.
func chain(conf *cni.Config, args *skel.CmdArgs, req *agent.PodRequest) error {
	if conf.RawPrevResult == nil {
		return failed(types.ErrInvalidNetworkConfig, "Tombolo's plugin is configured as chained, and no plugin comes before it", "put it behind the plugin that connects the pods in the configuration of %s", conf.Name)
	}
	if err := version.ParsePrevResult(&conf.PluginConf); err != nil {
		return failed(types.ErrDecodingFailure, "the result of the plugin before Tombolo's cannot be read", "%v", err)
	}
	prev, err := current.NewResultFromResult(conf.PrevResult)
	if err != nil {
		return failed(types.ErrDecodingFailure, "the result of the plugin before Tombolo's cannot be read", "%v", err)
	}
	req.Chained = true
	for _, i := range prev.Interfaces {
		if i.Sandbox == "" {
			req.HostIfs = append(req.HostIfs, i.Name)
		}
	}
	for _, ip := range prev.IPs {
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(prev.Interfaces) {
			if at := prev.Interfaces[*i]; at.Sandbox == "" || at.Name != args.IfName {
				continue // of another interface
			}
		}
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			req.Addresses = append(req.Addresses, a.Unmap())
		}
	}
	return nil
}
