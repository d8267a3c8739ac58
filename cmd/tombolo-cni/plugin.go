package main

import (
	"encoding/json"
	"fmt"
	"net"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/tombolo-mesh/tombolo/agent"
)

// defaultSocket is where an agent listens when the configuration does not say.
const defaultSocket = "/run/tombolo/agent.sock"

type config struct {
	types.NetConf
	Socket string `json:"socket"`
}

// podArgs are what Kubernetes runtimes say about the pod, in CNI_ARGS.
type podArgs struct {
	types.CommonArgs
	K8S_POD_NAMESPACE types.UnmarshallableString
	K8S_POD_NAME      types.UnmarshallableString
	K8S_POD_UID       types.UnmarshallableString
}

func read(args *skel.CmdArgs) (config, agent.PodRequest, error) {
	conf := config{Socket: defaultSocket}
	if err := json.Unmarshal(args.StdinData, &conf); err != nil {
		return conf, agent.PodRequest{}, types.NewError(types.ErrDecodingFailure, "network configuration is not JSON of the expected form", err.Error())
	}
	var pod podArgs
	pod.IgnoreUnknown = true // runtimes send more than we ask for
	if err := types.LoadArgs(args.Args, &pod); err != nil {
		return conf, agent.PodRequest{}, types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_ARGS cannot be read", err.Error())
	}
	return conf, agent.PodRequest{
		ContainerID: args.ContainerID, Netns: args.Netns, IfName: args.IfName,
		Namespace: string(pod.K8S_POD_NAMESPACE), Name: string(pod.K8S_POD_NAME), UID: string(pod.K8S_POD_UID),
	}, nil
}

func add(args *skel.CmdArgs) error {
	conf, req, err := read(args)
	if err != nil {
		return err
	}
	var got agent.PodResult
	if err := call(conf.Socket, "add", req, &got); err != nil {
		return err
	}
	return types.PrintResult(result(got, args.Netns), conf.CNIVersion)
}

func del(args *skel.CmdArgs) error {
	conf, req, err := read(args)
	if err != nil {
		return err
	}
	return call(conf.Socket, "del", req, nil)
}

func check(args *skel.CmdArgs) error {
	conf, req, err := read(args)
	if err != nil {
		return err
	}
	return call(conf.Socket, "check", req, nil)
}

// status tells the runtime whether ADD would be served now.
func status(args *skel.CmdArgs) error {
	conf, _, err := read(args)
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

func failed(code uint, what, details string, args ...any) error {
	return types.NewError(code, what, fmt.Sprintf(details, args...))
}
