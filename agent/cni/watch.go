package cni

import (
	"context"
	"fmt"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	waitReady   = time.Second            // until pods can be connected
	lookAgain   = 30 * time.Second       // for what no event told of
	settleFirst = 200 * time.Millisecond // after an event: others write several times
)

// Run keeps everything in place until ctx ends, and leaves it then. Both directories
// are watched: what others change or delete is put back, and another CNI's
// configuration that is chained to is followed.
func (i *Installer) Run(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch the directories of CNI: %w", err)
	}
	defer w.Close()
	said := ""
	for {
		there, err := i.Ensure(ctx)
		if text := fmt.Sprint(err); err != nil && text != said {
			i.Log.Error("CNI plugin not installed as it should be", "err", err)
			said = text
		} else if err == nil {
			said = ""
		}
		for _, dir := range []string{i.BinDir, i.ConfDir} {
			_ = w.Add(dir) // again when it was deleted and made anew; without it, lookAgain does
		}
		again := lookAgain
		if !there {
			again = waitReady
		}
		if !pause(ctx, w, again) {
			return nil
		}
	}
}

// pause returns after a while, or shortly after something changed; false = ctx has
// ended.
func pause(ctx context.Context, w *fsnotify.Watcher, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		case <-w.Events:
			if d > settleFirst {
				d = settleFirst
				timer.Reset(d)
			}
		case <-w.Errors: // events were lost: look
			timer.Reset(0)
		}
	}
}
