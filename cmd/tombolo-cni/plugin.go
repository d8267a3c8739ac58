package main

import (
	"context"
	"encoding/json"
	"net"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/cni"
)

// podArgs are what Kubernetes runtimes say about the pod, in CNI_ARGS.
type podArgs struct {
	types.CommonArgs
	K8S_POD_NAMESPACE types.UnmarshallableString
	K8S_POD_NAME      types.UnmarshallableString
	K8S_POD_UID       types.UnmarshallableString
}

func read(args *skel.CmdArgs) (cni.Config, agent.PodRequest, error) {
	conf, err := config(args)
	if err != nil {
		return conf, agent.PodRequest{}, err
	}
	var pod podArgs
	pod.IgnoreUnknown = true // runtimes send more than we ask for
	if err := types.LoadArgs(args.Args, &pod); err != nil {
		return conf, agent.PodRequest{}, types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_ARGS cannot be read", err.Error())
	}
	return conf, agent.PodRequest{
		Network: conf.Name, ContainerID: args.ContainerID, Netns: args.Netns, IfName: args.IfName,
		Namespace: string(pod.K8S_POD_NAMESPACE), Name: string(pod.K8S_POD_NAME), UID: string(pod.K8S_POD_UID),
	}, nil
}

func config(args *skel.CmdArgs) (cni.Config, error) {
	conf, err := cni.ParseConfig(args.StdinData)
	if err != nil {
		return conf, types.NewError(types.ErrInvalidNetworkConfig, "the network configuration cannot be used", err.Error())
	}
	return conf, nil
}

// add waits for an agent that starts. A deletion of the same sandbox that waits for
// the agent is void.
func add(args *skel.CmdArgs) error {
	conf, req, err := read(args)
	if err != nil {
		return err
	}
	if conf.Chained {
		if err := chain(&conf, args, &req); err != nil {
			return err
		}
	}
	wait, _ := conf.Wait()
	if err := cni.Undefer(conf.Deletions, req); err != nil {
		return failed(types.ErrIOFailure, "an earlier deletion of this sandbox cannot be taken back", "%v", err)
	}
	var got agent.PodResult
	if err := insist(wait, conf.Socket, "add", req, &got); err != nil {
		return err
	}
	if conf.Chained {
		return types.PrintResult(conf.PrevResult, conf.CNIVersion)
	}
	out := result(got, args.Netns)
	out.DNS = conf.DNS
	return types.PrintResult(out, conf.CNIVersion)
}

// del succeeds when the agent is away: the kubelet must be able to finish deleting
// pods. What the runtime may go on with is done here (the interface goes), the rest
// is noted for the agent.
func del(args *skel.CmdArgs) error {
	conf, req, err := read(args)
	if err != nil {
		return err
	}
	err = call(context.Background(), conf.Socket, "del", req, nil)
	if !isAway(err) {
		return err
	}
	if note := cni.Defer(conf.Deletions, req); note != nil {
		return failed(types.ErrTryAgainLater, "the Tombolo agent is away, and the deletion cannot be noted for it", "%v; %v", note, bare(err))
	}
	if conf.Chained {
		return nil // who made the interface takes it away
	}
	return unplug(args.Netns, args.IfName)
}

func check(args *skel.CmdArgs) error {
	conf, req, err := read(args)
	if err != nil {
		return err
	}
	return bare(call(context.Background(), conf.Socket, "check", req, nil))
}

// gc has the agent take away what the runtime does not list. A configuration that
// lists nothing at all, not even an empty list, is no GC.
func gc(args *skel.CmdArgs) error {
	conf, err := config(args)
	if err != nil {
		return err
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(args.StdinData, &keys); err != nil {
		return failed(types.ErrDecodingFailure, "the network configuration cannot be read", "%v", err)
	}
	if _, listed := keys["cni.dev/valid-attachments"]; !listed {
		return failed(types.ErrInvalidNetworkConfig, "GC without a list", "cni.dev/valid-attachments is missing, and without it every pod would be taken away")
	}
	req := agent.CollectRequest{Network: conf.Name, Valid: []agent.Attachment{}}
	for _, a := range conf.ValidAttachments {
		req.Valid = append(req.Valid, agent.Attachment{ContainerID: a.ContainerID, IfName: a.IfName})
	}
	return bare(call(context.Background(), conf.Socket, "gc", req, nil))
}

// status tells the runtime whether ADD would be served now.
func status(args *skel.CmdArgs) error {
	conf, err := config(args)
	if err != nil {
		return err
	}
	return ready(conf.Socket)
}

// result is the answer in CNI's form: interface 0 is the host's, 1 the pod's.
func result(r agent.PodResult, netns string) *current.Result {
	out := &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{
			{Name: r.HostIfName, Mac: r.HostMAC, Mtu: r.MTU},
			{Name: r.IfName, Mac: r.MAC, Mtu: r.MTU, Sandbox: netns},
		},
	}
	for _, ip := range r.IPs {
		out.IPs = append(out.IPs, &current.IPConfig{
			Interface: current.Int(1),
			Address:   net.IPNet{IP: ip.Address.Addr().AsSlice(), Mask: net.CIDRMask(ip.Address.Bits(), ip.Address.Addr().BitLen())},
			Gateway:   ip.Gateway.AsSlice(),
		})
	}
	for _, p := range r.Routes {
		route := &types.Route{Dst: net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		for _, ip := range r.IPs {
			if ip.Gateway.Is4() == p.Addr().Is4() {
				route.GW = ip.Gateway.AsSlice()
			}
		}
		out.Routes = append(out.Routes, route)
	}
	return out
}
