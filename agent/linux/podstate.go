package linux

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// pod is one pod as the state file remembers it. Its UID owns its addresses:
// across restarts, reboots and new sandboxes.
type pod struct {
	UID         string       `json:"uid"`
	Namespace   string       `json:"namespace"`
	Name        string       `json:"name"`
	Network     string       `json:"network,omitempty"` // of CNI; "" = not known (an older file, or learned from a device)
	ContainerID string       `json:"containerID"`       // of the last ADD: an older sandbox's DEL changes nothing
	Netns       string       `json:"netns"`
	IfName      string       `json:"ifName"`
	Addresses   []netip.Addr `json:"addresses"`
	MTU         int          `json:"mtu"`
	// HostIf is the host's end of a chained pod's veth, another CNI plugin's; "" = the
	// pod is connected by us, and what follows is derived from its UID.
	HostIf  string    `json:"hostIf,omitempty"`
	PodMAC  agent.MAC `json:"podMAC,omitzero"`
	HostMAC agent.MAC `json:"hostMAC,omitzero"`
	// Identity is what the cluster said last: with it, a restart changes nothing.
	Identity clustermesh.Identity `json:"identity,omitempty"`
	Added    time.Time            `json:"added"`
	// Gone is since when the pod has no link (its namespace went, or the node
	// rebooted); zero = connected. The address is kept for it for a while.
	Gone time.Time `json:"gone,omitzero"`
	// Listed: the cluster has had it among this node's pods. Only then does its
	// absence from the list mean that it ended.
	Listed bool `json:"listed,omitempty"`
}

// goneFor is how long a pod without a link keeps its addresses: a rebooted node
// gets an ADD for it within minutes, or never.
const goneFor = time.Hour

// departed is a pod whose removal the cluster has yet to be told.
type departed struct {
	UID       string       `json:"uid"`
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`
}

const podStateVersion = 1

// podState is the whole state file: every change rewrites it.
type podState struct {
	Version  int            `json:"version"`
	Pods     []pod          `json:"pods"`
	Freed    []freedAddress `json:"freed"`
	Departed []departed     `json:"departed"`
}

// readPodState reads the file. One that cannot be used is named in the log and
// set aside; recovered then says that the caller should look at the kernel for
// pods it has forgotten.
func readPodState(path string, log *slog.Logger) (st podState, recovered bool, err error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return st, true, nil
	}
	if err != nil {
		return st, false, fmt.Errorf("read pod state: %w", err)
	}
	if err = json.Unmarshal(data, &st); err == nil && st.Version != podStateVersion {
		err = fmt.Errorf("version %d, this agent reads %d", st.Version, podStateVersion)
	}
	if err == nil {
		err = st.check()
	}
	if err == nil {
		return st, false, nil
	}
	aside := path + ".bad"
	log.Error("pod state file cannot be used and was set aside; addresses are learned from the pods' devices", "file", path, "aside", aside, "err", err)
	if err := os.Rename(path, aside); err != nil {
		return podState{}, false, fmt.Errorf("set pod state aside: %w", err)
	}
	return podState{}, true, nil
}

// check refuses what this code never writes.
func (st *podState) check() error {
	uids, addrs := map[string]bool{}, map[netip.Addr]string{}
	for _, p := range st.Pods {
		if p.UID == "" || uids[p.UID] {
			return fmt.Errorf("pod UID %q is empty or twice", p.UID)
		}
		uids[p.UID] = true
		for _, a := range p.Addresses {
			if other, taken := addrs[a]; taken || !a.IsValid() {
				return fmt.Errorf("address %s of pod %s is of pod %q too", a, p.UID, other)
			}
			addrs[a] = p.UID
		}
	}
	for _, f := range st.Freed {
		if !f.Address.IsValid() {
			return errors.New("a freed address is not valid")
		}
	}
	return nil
}

// encode is stable: sorted by UID.
func (st *podState) encode() []byte {
	slices.SortFunc(st.Pods, func(a, b pod) int { return strings.Compare(a.UID, b.UID) })
	data, err := json.MarshalIndent(st, "", " ")
	if err != nil {
		panic(err) // plain structs with text marshalling of valid addresses
	}
	return append(data, '\n')
}
