package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func newMountBPFFS() *cobra.Command {
	return &cobra.Command{
		Use:   "mount-bpffs DIR",
		Short: "Mount a bpffs at DIR, unless one is there",
		Long: `mount-bpffs is for the init container on nodes whose distribution mounts none; systemd
does it elsewhere. What is mounted already stays as it is.`,
		Example: "  tombolo-agent mount-bpffs /sys/fs/bpf",
		Args:    cobra.ExactArgs(1), SilenceUsage: true, SilenceErrors: true,
		RunE: func(_ *cobra.Command, args []string) error {
			var st unix.Statfs_t
			if err := unix.Statfs(args[0], &st); err != nil {
				return fmt.Errorf("%s: %w; it must be a folder", args[0], err)
			}
			if uint32(st.Type) == unix.BPF_FS_MAGIC {
				return nil
			}
			if err := unix.Mount("bpf", args[0], "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
				return fmt.Errorf("mount a bpffs at %s: %w; needs CAP_SYS_ADMIN and a kernel with BPF", args[0], err)
			}
			return nil
		},
	}
}
