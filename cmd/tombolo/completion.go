package main

import (
	"io"

	"github.com/spf13/cobra"
)

// completionCommand prints shell scripts; what they offer comes from the live
// mesh: names of clusters, services and tables.
func completionCommand(out io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "Print a script that completes commands in bash, zsh or fish",
		Long:  "With the script loaded, Tab completes commands, flags, and the names of clusters,\nservices and tables that this machine's agent and mesh API server know.",
		Example: `  source <(tombolo completion bash)
  tombolo completion zsh > "${fpath[1]}/_tombolo"
  tombolo completion fish > ~/.config/fish/completions/tombolo.fish`,
		Args:              oneArg("SHELL: bash, zsh or fish"),
		ValidArgsFunction: cobra.FixedCompletions([]string{"bash", "zsh", "fish"}, cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(out, true)
			case "zsh":
				return root.GenZshCompletion(out)
			case "fish":
				return root.GenFishCompletion(out, true)
			}
			return oneOf("completion for shell", args[0], []string{"bash", "zsh", "fish"})
		},
	}
}

// appendPlain leaves out names that could do something to a shell or terminal.
func appendPlain(names []string, name string) []string {
	if printable(name) != name {
		return names
	}
	return append(names, name)
}
