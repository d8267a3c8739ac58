package main

import (
	"github.com/spf13/cobra"

	"github.com/tombolo-mesh/tombolo/agent/tunnel"
)

func newTunnel() *cobra.Command {
	var cfg tunnel.Config
	var level string
	var ifNeeded bool
	cmd := &cobra.Command{
		Use:   "tunnel --device NAME",
		Short: "Hold a user-space WireGuard device, for kernels without WireGuard",
		Long: `tunnel makes a WireGuard device in the network namespace it is started in and holds it
until SIGTERM or SIGINT. The agent configures it through ` + tunnel.SocketDir + `/NAME.sock. It is a process of
its own so that restarting the agent does not interrupt the tunnel. Where the kernel has
WireGuard it is not needed.`,
		Example:       "  tombolo-agent tunnel --device tombolo0",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if cfg.Log, err = logger(level); err != nil {
				return err
			}
			if ifNeeded {
				has, err := tunnel.KernelHas()
				if err != nil {
					return err
				}
				if has {
					cfg.Log.Info("this kernel has WireGuard: there is nothing to hold, and this waits")
					<-cmd.Context().Done()
					return nil
				}
			}
			return tunnel.Run(cmd.Context(), cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Device, "device", "tombolo0", "`NAME` of the device; unique on the machine")
	f.IntVar(&cfg.MTU, "mtu", tunnel.DefaultMTU, "first MTU in `BYTES`; the agent sets what fits the underlay")
	f.BoolVar(&ifNeeded, "if-needed", false, "where the kernel has WireGuard, do nothing but wait for the end")
	f.StringVar(&level, "log-level", "info", "`LEVEL`: debug, info, warn or error")
	return cmd
}
