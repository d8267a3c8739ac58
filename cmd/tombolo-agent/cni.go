package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tombolo-mesh/tombolo/agent/cni"
)

// cniOptions are the flags about the CNI plugin.
type cniOptions struct {
	binDir, confDir, confName, mode, plugin, chain string
}

func (c *cniOptions) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&c.binDir, "cni-bin-dir", "", "`DIR` of the container runtime's CNI plugins, usually /opt/cni/bin, to which the plugin is copied (default: it is not installed)")
	f.StringVar(&c.confDir, "cni-conf-dir", "", "`DIR` of the container runtime's network configurations, usually /etc/cni/net.d, in which one is kept (default: none is written)")
	f.StringVar(&c.confName, "cni-conf-name", "05-tombolo.conflist", "`NAME` of that configuration; runtimes take the first by name")
}

// installer is nil if the plugin is not to be installed.
func (c *cniOptions) installer(o options, log *slog.Logger) (*cni.Installer, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	if c.binDir == "" {
		return nil, nil
	}
	program := c.plugin
	if program == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find the CNI plugin beside this program: %w; name it by --cni-plugin", err)
		}
		program = filepath.Join(filepath.Dir(self), cni.Plugin)
	}
	return &cni.Installer{
		BinDir: c.binDir, ConfDir: c.confDir, ConfName: c.confName, Program: program, Other: c.chain, Log: log,
		Own: cni.Own{Type: cni.Plugin, Socket: o.socket, Deletions: o.deletions(), Chained: c.chained()},
	}, nil
}

func (c *cniOptions) chained() bool { return c.mode == "chained" }

func (c *cniOptions) check() error {
	switch {
	case c.mode != "" && c.mode != "main" && c.mode != "chained":
		return fmt.Errorf("--cni-mode %q: allowed are main, chained", c.mode)
	case (c.binDir == "") != (c.confDir == ""):
		return fmt.Errorf("--cni-bin-dir and --cni-conf-dir go together: the plugin is of no use without its configuration, nor the other way")
	case strings.ContainsRune(c.confName, '/') || !strings.HasSuffix(c.confName, ".conflist"):
		return fmt.Errorf("--cni-conf-name %q: want a file name that ends in .conflist", c.confName)
	case c.chain != "" && !c.chained():
		return fmt.Errorf("--cni-chain is for --cni-mode=chained")
	}
	return nil
}

// cniDetail is a line of the status.
func (n *node) cniDetail() string {
	if n.installer == nil {
		return "not installed by this agent"
	}
	return n.installer.State()
}
