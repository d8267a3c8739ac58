package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// podCleanup is what cleaning takes in a pod that has come in the agent's place:
// the agent may still be ending, folders go too, and there is somebody to tell.
type podCleanup struct {
	wait    time.Duration
	remove  []string
	stay    string
	cleaned string
}

// inPod gives the command the flags, and does what they say around it.
func inPod(cmd *cobra.Command, o *options) {
	var p podCleanup
	f := cmd.Flags()
	f.DurationVar(&p.wait, "wait", 0, "wait so `LONG` for an agent and a mesh API server of this node to end")
	f.StringArrayVar(&p.remove, "remove", nil, "`DIR` called tombolo, to remove with all that is in it, or wireguard, of which only our device's socket goes; repeatable")
	f.StringVar(&p.stay, "stay", "", "make `FILE` when all is done, and wait to be stopped: for pods")
	f.StringVar(&p.cleaned, "cleaned", "", "do nothing but say whether `FILE` of --stay is there: for probes")
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if p.cleaned != "" {
			_, err := os.Stat(p.cleaned)
			return err
		}
		if err := p.check(); err != nil {
			return err
		}
		if err := ended(cmd.Context(), o, p.wait); err != nil {
			return err
		}
		if err := run(cmd, args); err != nil {
			return err
		}
		var errs []error
		for _, dir := range p.remove {
			errs = append(errs, take(dir, o.device))
		}
		if err := errors.Join(errs...); err != nil || p.stay == "" {
			return err
		}
		if err := os.WriteFile(p.stay, nil, 0o600); err != nil {
			return err
		}
		<-cmd.Context().Done()
		return nil
	}
}

// take removes a folder of Tombolo's. The one with WireGuard's sockets is shared with
// whoever else runs WireGuard in user space: it goes when nobody's is left in it.
func take(dir, device string) error {
	if filepath.Base(filepath.Clean(dir)) != "wireguard" {
		return os.RemoveAll(dir)
	}
	if err := os.Remove(filepath.Join(dir, device+".sock")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

// check refuses folders that are not by their name Tombolo's: a slip of the pen
// must not cost a node its files.
func (p podCleanup) check() error {
	for _, dir := range p.remove {
		if name := filepath.Base(filepath.Clean(dir)); !filepath.IsAbs(dir) || name != "tombolo" && name != "wireguard" {
			return fmt.Errorf("--remove %s: want the absolute path of a folder called tombolo or wireguard", dir)
		}
	}
	return nil
}

// ended waits until nobody holds the state directory and the mesh API server's
// socket: both would write files again.
func ended(ctx context.Context, o *options, limit time.Duration) error {
	if limit <= 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := busy(o)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %s: %w", limit, err)
		case <-tick.C:
		}
	}
}

func busy(o *options) error {
	lock, err := lockState(o.stateDir)
	if err != nil {
		return err
	}
	lock.Close()
	server := filepath.Join(filepath.Dir(o.socket), "apiserver.sock")
	if c, err := net.Dial("unix", server); err == nil {
		c.Close()
		return fmt.Errorf("a mesh API server still serves %s", server)
	}
	return nil
}
