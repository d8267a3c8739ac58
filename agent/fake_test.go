package agent_test

import (
	"errors"
	"testing"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/agenttest"
)

func TestFakeIsATable(t *testing.T) {
	agenttest.TestTable(t, func(*testing.T) agent.Table[agent.SlotKey, agent.SlotRow] {
		return agent.NewFake[agent.SlotKey, agent.SlotRow]("slots", 50)
	}, agenttest.Slot, agenttest.Options{Size: 50})
	agenttest.TestTable(t, func(*testing.T) agent.Table[agent.Prefix, agent.IPCacheRow] {
		return agent.NewFake[agent.Prefix, agent.IPCacheRow]("ipprefixes", 0)
	}, agenttest.IPPrefix, agenttest.Options{})
}

func TestFaultyWithoutFaultsIsATable(t *testing.T) {
	agenttest.TestTable(t, func(*testing.T) agent.Table[agent.SlotKey, agent.SlotRow] {
		return agent.NewFaulty(agent.NewFake[agent.SlotKey, agent.SlotRow]("slots", 50), agent.NoFaults)
	}, agenttest.Slot, agenttest.Options{Size: 50})
}

func TestFakeRefusesTooLargeBatches(t *testing.T) {
	f := agent.NewFake[agent.SlotKey, agent.SlotRow]("slots", 0)
	if err := f.Put(agenttest.Rows(agenttest.Slot, agent.MaxBatch+1, 0)); err == nil {
		t.Error("a batch above MaxBatch was taken")
	}
}

func TestFaultyFailsAsScheduled(t *testing.T) {
	fake := agent.NewFake[agent.SlotKey, agent.SlotRow]("slots", 0)
	boom := errors.New("boom")
	f := agent.NewFaulty(fake, func(op agent.FaultOp, n, rows int) agent.Fault {
		switch {
		case op == agent.OpPut && n == 0:
			return agent.Fault{Err: boom, Apply: 3}
		case op == agent.OpDump:
			return agent.Fault{Err: boom, Apply: 2}
		case op == agent.OpDelete:
			return agent.Fault{Drift: 1}
		}
		return agent.Fault{}
	})
	if err := f.Put(agenttest.Rows(agenttest.Slot, 10, 0)); !errors.Is(err, boom) || fake.Len() != 3 {
		t.Fatalf("first put: %v, %d rows; want boom and 3", err, fake.Len())
	}
	n := 0
	for range f.Dump() {
		n++
	}
	if !errors.Is(f.DumpErr(), boom) || n != 2 {
		t.Fatalf("dump: %v after %d rows; want boom after 2", f.DumpErr(), n)
	}
	if err := f.Delete(nil); err != nil || fake.Len() != 2 {
		t.Fatalf("drift: %v, %d rows left; want 2", err, fake.Len())
	}
	f.SetSchedule(agent.NoFaults)
	if err := f.Put(agenttest.Rows(agenttest.Slot, 10, 0)); err != nil || fake.Len() != 10 {
		t.Fatalf("healed: %v, %d rows", err, fake.Len())
	}
}
