package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// Own is the plugin's part of the configurations that the agent writes.
type Own struct {
	Type      string `json:"type"`
	Socket    string `json:"socket"`
	Deletions string `json:"deletions"`
	Chained   bool   `json:"chained,omitempty"`
}

// Conflist is the network configuration of a node whose pods Tombolo connects. A
// runtime that knows versions in the plural takes the newest it can (and with 1.1
// asks for STATUS and GC); one that does not reads the first line.
func Conflist(own Own) []byte {
	return marshal(map[string]any{
		"cniVersion":  "1.0.0",
		"cniVersions": []string{"1.0.0", Version},
		"name":        Network,
		"plugins":     []Own{own},
	})
}

// errOurs: a configuration has our plugin in it already.
var errOurs = errors.New("it is Tombolo's own")

// Chain is another plugin's configuration with ours after it. What it says stays as
// it is, its name above all: IPAM plugins keep their addresses under it. Of a single
// plugin's configuration a list is made.
func Chain(other []byte, own Own) ([]byte, error) {
	list, plugins, err := parseList(other)
	if err != nil {
		return nil, err
	}
	last, err := json.Marshal(own)
	if err != nil {
		return nil, err
	}
	list["plugins"] = append(plugins, last)
	return marshal(list), nil
}

// parseList reads a list, or a single plugin's configuration, of somebody else.
func parseList(data []byte) (list map[string]any, plugins []json.RawMessage, err error) {
	raw := map[string]json.RawMessage{}
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, nil, fmt.Errorf("not a JSON object: %w", err)
	}
	list = map[string]any{}
	var head struct {
		Name string
		Type string
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, nil, err
	}
	if head.Name == "" {
		return nil, nil, errors.New("it has no name")
	}
	switch text, is := raw["plugins"]; {
	case is:
		if err := json.Unmarshal(text, &plugins); err != nil {
			return nil, nil, fmt.Errorf("plugins: %w", err)
		}
		for k, v := range raw {
			list[k] = v
		}
	case head.Type != "":
		single := map[string]json.RawMessage{}
		for k, v := range raw {
			if k == "name" || k == "cniVersion" {
				list[k] = v
			} else {
				single[k] = v
			}
		}
		plugins = []json.RawMessage{marshal(single)}
	}
	if len(plugins) == 0 {
		return nil, nil, errors.New("it has no plugins")
	}
	if slices.ContainsFunc(plugins, func(p json.RawMessage) bool { return pluginType(p) == Plugin }) {
		return nil, nil, errOurs
	}
	return list, plugins, nil
}

func pluginType(plugin json.RawMessage) string {
	var p struct{ Type string }
	if json.Unmarshal(plugin, &p) != nil {
		return ""
	}
	return p.Type
}

// isOurs reports whether a configuration has our plugin in it.
func isOurs(data []byte) bool {
	_, _, err := parseList(data)
	return errors.Is(err, errOurs)
}

// networkName is the name that a configuration gives its network.
func networkName(data []byte) string {
	var head struct{ Name string }
	if json.Unmarshal(data, &head) != nil {
		return ""
	}
	return head.Name
}

func marshal(v any) []byte {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		panic(err) // maps, strings and JSON that was read
	}
	return append(data, '\n')
}
