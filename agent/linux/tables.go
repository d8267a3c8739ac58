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
		Config:        &nodeConfig{m: maps.Config},
		Peers:         newPeers(device.wg, device.name),
		Routes:        &routes{nl: device.nl, device: device.name},
		Policy:        newMap("policy", maps.Policy, toPolicyKey, fromPolicyKey, toPolicy, fromPolicy).ordered(narrowFirst),
		IPPrefixes:    newMap("ipcache (prefixes)", maps.IPPrefixes, toPrefix, fromPrefix, toIPCache, fromIPCache),
		IPs:           newMap("ipcache", maps.IPCache, toAddr, fromAddr, toIPCache, fromIPCache),
		ClassPrefixes: newMap("class_prefixes", maps.ClassPrefixes, toPrefix, fromPrefix, toClass, fromClass),
		Classes:       newMap("classes", maps.Classes, toAddr, fromAddr, toClass, fromClass),
		Subjects:      newMap("subjects", maps.Subjects, toSubjectKey, fromSubjectKey, toSubject, fromSubject),
		Endpoints:     newMap("endpoints", maps.Endpoints, toAddr, fromAddr, toEndpoint, fromEndpoint),
		SourceRanges:  newMap("source_ranges", maps.SourceRanges, toRangeKey, fromRangeKey, toRange, fromRange),
		Maglev:        newMap("maglev", maps.Maglev, toMaglevKey, fromMaglevKey, toMaglev, fromMaglev),
		Slots:         newMap("slots", maps.Slots, toSlotKey, fromSlotKey, toSlot, fromSlot),
		Services:      newMap("services", maps.Services, toServiceKey, fromServiceKey, toService, fromService),
		Epoch:         policyEpoch{maps.Epoch},
		NodeHealth:    newMap("node_health", maps.NodeHealth, toNodeKey, fromNodeKey, toHealth, fromHealth),
		ClusterHealth: newMap("cluster_health", maps.ClusterHealth, toClusterKey, fromClusterKey, toHealth, fromHealth),
	}
}
