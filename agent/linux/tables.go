package linux

import (
	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/bpf"
)

// NewTables are all edges of an agent on this kernel: the maps of objects, and
// the peers and routes of device in the network namespace in which it was
// opened. One goroutine owns them; they hold nothing that needs closing.
func NewTables(maps *bpf.Maps, device *Device) agent.Tables {
	return agent.Tables{
		Peers:         newPeers(device.wg, device.name),
		Routes:        &routes{nl: device.nl, device: device.name},
		IPPrefixes:    newMap("ipcache (prefixes)", maps.IPPrefixes, toPrefix, fromPrefix, toIPCache, fromIPCache),
		IPs:           newMap("ipcache", maps.IPCache, toAddr, fromAddr, toIPCache, fromIPCache),
		Endpoints:     newMap("endpoints", maps.Endpoints, toAddr, fromAddr, toEndpoint, fromEndpoint),
		Slots:         newMap("slots", maps.Slots, toSlotKey, fromSlotKey, toSlot, fromSlot),
		Services:      newMap("services", maps.Services, toServiceKey, fromServiceKey, toService, fromService),
		NodeHealth:    newMap("node_health", maps.NodeHealth, toNodeKey, fromNodeKey, toHealth, fromHealth),
		ClusterHealth: newMap("cluster_health", maps.ClusterHealth, toClusterKey, fromClusterKey, toHealth, fromHealth),
	}
}
