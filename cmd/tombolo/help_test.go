package main

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// eachCommand calls do for every command that help shows.
func eachCommand(t *testing.T, do func(t *testing.T, cmd *cobra.Command)) {
	root := newRoot(environment{Getenv: func(string) string { return "" }})
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		t.Run(strings.ReplaceAll(cmd.CommandPath(), " ", "-"), func(t *testing.T) { do(t, cmd) })
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(root)
}

func TestEveryCommandExplainsItself(t *testing.T) {
	eachCommand(t, func(t *testing.T, cmd *cobra.Command) {
		if cmd.Short == "" || cmd.Long == "" || cmd.Example == "" {
			t.Errorf("%s needs Short, Long and Example", cmd.CommandPath())
		}
		if !strings.Contains(cmd.Example, cmd.CommandPath()) {
			t.Errorf("the example of %s does not show it:\n%s", cmd.CommandPath(), cmd.Example)
		}
		for _, line := range strings.Split(cmd.Long+"\n"+cmd.Example, "\n") {
			if len([]rune(line)) > 90 {
				t.Errorf("a line is longer than 90 columns: %q", line)
			}
		}
		if last := cmd.Short[len(cmd.Short)-1]; last == '.' {
			t.Errorf("Short ends with a full stop: %q", cmd.Short)
		}
	})
}

func TestHelp(t *testing.T) {
	eachCommand(t, func(t *testing.T, cmd *cobra.Command) {
		words := strings.Fields(cmd.CommandPath())[1:]
		byFlag := at(t, nil, append(words, "--help")...)
		if byFlag.status != 0 || byFlag.errOut != "" {
			t.Fatalf("status %d, standard error %q", byFlag.status, byFlag.errOut)
		}
		golden(t, "help/"+strings.ReplaceAll(cmd.CommandPath(), " ", "-")+".txt", byFlag.out)
		if byWord := at(t, nil, append([]string{"help"}, words...)...); byWord != byFlag {
			t.Errorf("'tombolo help %s' differs from --help:\n%s%s", strings.Join(words, " "), byWord.out, byWord.errOut)
		}
	})
}

// Every flag that chooses an output is spelt alike, and every command that
// reads has it.
func TestReadingCommandsHaveJSON(t *testing.T) {
	for _, words := range []string{"status", "service list", "service explain", "endpoints", "policy trace", "policy list", "maps", "mesh list", "mesh status", "mesh records", "version",
		"mesh invite", "mesh join", "mesh leave", "mesh remove", "mesh drain", "mesh undrain", "mesh confirm-deletes", "node invite"} {
		cmd, _, err := newRoot(environment{Getenv: func(string) string { return "" }}).Find(strings.Fields(words))
		if err != nil || cmd.Flags().ShorthandLookup("o") == nil {
			t.Errorf("%s has no -o (%v)", words, err)
		}
	}
}
