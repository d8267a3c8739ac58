// Package cni is what the CNI plugin and the agent say to one another by way of
// files: the plugin's configuration, which the agent writes for the container
// runtime, and notes of deletions that the plugin leaves for an agent that is away.
// It knows nothing of the kernel.
package cni

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

const (
	// Plugin is the plugin's type and the name of its program.
	Plugin = "tombolo-cni"
	// Network is the name of the network that the agent configures.
	Network = "tombolo"
	// Version of the CNI specification that the agent's configuration asks for.
	Version = "1.1.0"

	defaultSocket    = "/run/tombolo/agent.sock"
	defaultDeletions = "/var/lib/tombolo/agent/deletions"
	defaultDeadline  = time.Minute
	// mostDeadline is as long as a kubelet waits for a sandbox, less what the
	// runtime needs for itself.
	mostDeadline = 3 * time.Minute
)

// Config is the plugin's part of a network configuration.
type Config struct {
	types.PluginConf
	// Socket is the agent's.
	Socket string `json:"socket,omitempty"`
	// Deletions is the directory for notes of deletions that wait for the agent.
	Deletions string `json:"deletions,omitempty"`
	// Deadline is how long ADD waits for an agent that starts, like "60s".
	Deadline string `json:"deadline,omitempty"`
	// Chained: another plugin has made interface and addresses.
	Chained bool `json:"chained,omitempty"`
}

// ParseConfig reads a configuration as the runtime gives it, and fills in defaults.
func ParseConfig(data []byte) (Config, error) {
	c := Config{Socket: defaultSocket, Deletions: defaultDeletions}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, fmt.Errorf("not JSON of the expected form: %w", err)
	}
	_, err := c.Wait()
	return c, err
}

// Wait is how long ADD waits for the agent.
func (c *Config) Wait() (time.Duration, error) {
	if c.Deadline == "" {
		return defaultDeadline, nil
	}
	d, err := time.ParseDuration(c.Deadline)
	if err != nil || d <= 0 || d > mostDeadline {
		return 0, fmt.Errorf("deadline %q: want a duration above 0 and up to %s, like \"60s\"", c.Deadline, mostDeadline)
	}
	return d, nil
}
