package linux

import (
	"fmt"
	"iter"

	"github.com/cilium/ebpf"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/bpf"
)

// nodeConfig is the Table of the node's own row: the one element of an array,
// which is always there. Zero counts as absent.
type nodeConfig struct {
	m   *ebpf.Map
	err error
}

// Dump yields the row unless it is zero.
func (t *nodeConfig) Dump() iter.Seq2[agent.ConfigKey, agent.ConfigRow] {
	return func(yield func(agent.ConfigKey, agent.ConfigRow) bool) {
		var row bpf.Config
		if t.err = t.m.Lookup(uint32(0), &row); t.err != nil {
			t.err = fmt.Errorf("read map config: %w", t.err)
			return
		}
		if row != (bpf.Config{}) {
			yield(agent.ConfigKey{}, fromConfig(row))
		}
	}
}

func (t *nodeConfig) DumpErr() error { return t.err }

// Put overwrites the row.
func (t *nodeConfig) Put(rows map[agent.ConfigKey]agent.ConfigRow) error {
	for _, row := range rows {
		if err := t.m.Put(uint32(0), toConfig(row)); err != nil {
			return fmt.Errorf("write map config: %w", err)
		}
	}
	return nil
}

// Delete makes the row zero.
func (t *nodeConfig) Delete(keys []agent.ConfigKey) error {
	if len(keys) == 0 {
		return nil
	}
	return t.Put(map[agent.ConfigKey]agent.ConfigRow{{}: {}})
}

// policyEpoch is the kernel's number of the policy in force. The agent is its only
// writer.
type policyEpoch struct{ m *ebpf.Map }

// Next counts it up.
func (e policyEpoch) Next() error {
	var n uint32
	if err := e.m.Lookup(uint32(0), &n); err != nil {
		return fmt.Errorf("read map epoch: %w", err)
	}
	if err := e.m.Put(uint32(0), n+1); err != nil {
		return fmt.Errorf("write map epoch: %w", err)
	}
	return nil
}
