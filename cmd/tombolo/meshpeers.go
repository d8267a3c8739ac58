package main

import (
	"fmt"

	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// printMeshPeers prints the MeshPeer resources, and below them the message of each
// condition that does not hold.
func (c *cli) printMeshPeers(list []*pb.MeshPeerStatus) error {
	if len(list) == 0 {
		return nil
	}
	kinds := []string{"Joined", "Reachable", "Synced"}
	var rows [][]string
	for _, mp := range list {
		wish := mp.Wish
		if mp.Leaving {
			wish = "is being deleted"
		}
		row := []string{mp.Name, wish}
		for _, kind := range kinds {
			row = append(row, conditionOf(mp, kind).GetStatus())
		}
		rows = append(rows, append(row, conditionOf(mp, "Joined").GetReason(), c.ago(mp.Created)))
	}
	fmt.Fprintln(c.env.Stdout)
	if err := table(c.env.Stdout, "MESHPEER WISH JOINED REACHABLE SYNCED REASON CREATED", rows); err != nil {
		return err
	}
	for _, mp := range list {
		for _, kind := range kinds {
			// What is unknown follows from what does not hold.
			if cond := conditionOf(mp, kind); cond != nil && (cond.Status == "False" || cond.Reason == "CannotLeave") {
				fmt.Fprintf(c.env.Stdout, "  %s: %s %s: %s\n", printable(mp.Name), kind, printable(cond.Reason), printable(cond.Message))
			}
		}
	}
	return nil
}

// conditionOf is nil if nothing was said of it yet.
func conditionOf(mp *pb.MeshPeerStatus, kind string) *pb.Condition {
	for _, cond := range mp.Conditions {
		if cond.Type == kind {
			return cond
		}
	}
	return nil
}

func meshPeersJSON(list []*pb.MeshPeerStatus) []map[string]any {
	out := []map[string]any{}
	for _, mp := range list {
		conditions := []map[string]any{}
		for _, cond := range mp.Conditions {
			conditions = append(conditions, map[string]any{"type": cond.Type, "status": cond.Status, "reason": cond.Reason, "message": cond.Message, "lastTransitionTime": timeText(cond.Since)})
		}
		out = append(out, map[string]any{"name": mp.Name, "wish": mp.Wish, "leaving": mp.Leaving, "created": timeText(mp.Created), "conditions": conditions})
	}
	return out
}
