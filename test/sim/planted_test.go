package sim

import (
	"context"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

const (
	plantSilence  = "silence"
	plantWakeup   = "wakeup"
	plantOrder    = "order"
	plantUnheld   = "unchecked"
	plantUnfenced = "unfenced"
)

func (s *sim) plantTables(t agent.Tables) agent.Tables { return t }

func (s *sim) plantConnector(c connector) agent.Connector { return c }

func (c *conn) swallow(kvstore.Batch) bool { return false }

func (c *conn) silence(context.Context, string, func([]kvstore.KV) error) (kvstore.Position, bool) {
	return kvstore.Position{}, false
}
