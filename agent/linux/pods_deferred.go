package linux

import (
	"errors"
	"os"

	"github.com/tombolo-mesh/tombolo/agent/cni"
)

// CarryOut does the deletions that the plugin has noted in dir while no agent was
// there. A note leaves with what it asks for under the lock that Add needs, and the
// plugin takes it back before it asks for Add: a sandbox that is added again is not
// ended by an old note. A note that cannot be read is set aside.
func (p *Pods) CarryOut(dir string) error {
	files, err := cni.Deferred(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, file := range files {
		errs = append(errs, p.carryOut(file))
	}
	return errors.Join(errs...)
}

func (p *Pods) carryOut(file string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	r, err := cni.ReadDeferred(file)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		p.log.Error("note of a deletion cannot be read and was set aside", "file", file, "aside", file+".bad", "err", err)
		return os.Rename(file, file+".bad")
	}
	if err := p.del(r); err != nil {
		return err
	}
	p.log.Info("deletion carried out that came while no agent was there", "namespace", r.Namespace, "name", r.Name, "uid", r.UID, "container", r.ContainerID)
	return os.Remove(file)
}
