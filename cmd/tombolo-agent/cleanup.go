package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"

	"github.com/spf13/cobra"

	"github.com/tombolo-mesh/tombolo/agent/linux"
	"github.com/tombolo-mesh/tombolo/agent/register"
	"github.com/tombolo-mesh/tombolo/bpf"
)

func newCleanup() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Take everything of Tombolo's off this node's kernel",
		Long: `cleanup takes the CNI plugin and its configuration away (--cni-bin-dir, --cni-conf-dir: as the
agent was given them), detaches the BPF programs, removes their pins, deletes our routes, the devices of
pods, the tunnel addresses and the WireGuard configuration in the present network
namespace. It refuses while an agent runs. The state directory stays: with it, the node
comes back as the same node. Pods lose their network until they are added again.`,
		Example: "  tombolo-agent cleanup --state-dir /var/lib/tombolo/agent --bpffs /sys/fs/bpf/tombolo --wireguard-device tombolo0",
		Args:    cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		RunE: func(*cobra.Command, []string) error { return cleanup(o) },
	}
	shared(cmd, &o)
	inPod(cmd, &o)
	return cmd
}

// cleanup removes in the reverse order of entry: programs first, guards last.
func cleanup(o options) error {
	lock, err := lockState(o.stateDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	installer, err := o.cni.installer(o, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	if installer != nil {
		if err := installer.Remove(); err != nil { // first: no new pod comes, and the node is not Ready by it
			return err
		}
	}
	if err := bpf.Unload(o.bpffs); err != nil {
		return fmt.Errorf("BPF programs and maps: %w", err)
	}
	var addrs []netip.Addr
	facts, _, err := register.ReadFacts(o.stateDir)
	if err != nil {
		err = fmt.Errorf("tunnel addresses may be left on lo: %w", err)
	}
	addrs = facts.TunnelAddresses
	errs := []error{err, linux.Cleanup(o.device, addrs)}
	if err := os.Remove(o.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
