package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// usageArgs marks every argument mistake in the tree as wrong usage, and says
// how the command is typed.
func usageArgs(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usageError{fmt.Errorf("%w\nusage: %s", err, cmd.UseLine())}
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		usageArgs(sub)
	}
}

// noArgs is for commands that take none.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("'%s' takes no arguments, got %q", cmd.CommandPath(), args[0])
	}
	return nil
}

// oneArg is for commands that take exactly one, called what.
func oneArg(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) == 0:
			return fmt.Errorf("'%s' needs %s", cmd.CommandPath(), what)
		case len(args) > 1:
			return fmt.Errorf("'%s' takes %s alone, got also %q", cmd.CommandPath(), what, args[1])
		}
		return nil
	}
}

// upToOneArg is for commands that take one, called what, or none.
func upToOneArg(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return oneArg(what)(cmd, args)
		}
		return nil
	}
}

// group is a command that only holds others.
func group(use, short, long, example string, subs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Long: long, Example: example, Args: unknownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(subs...)
	return cmd
}

func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
		}
	}
	return fmt.Errorf("unknown command %q for '%s'%s", args[0], cmd.CommandPath(), didYouMean(args[0], names))
}

// flagError adds the nearest flag to a mistyped one.
func flagError(cmd *cobra.Command, err error) error {
	text := err.Error()
	typed, is := strings.CutPrefix(text, "unknown flag: --")
	if !is {
		return usageError{fmt.Errorf("%w\nusage: %s", err, cmd.UseLine())}
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, "--"+f.Name)
		}
	})
	return usageError{fmt.Errorf("unknown flag --%s for '%s'%s\nusage: %s", typed, cmd.CommandPath(), didYouMean("--"+typed, names), cmd.UseLine())}
}

// didYouMean is a half-sentence about the names that are near to what was
// typed, or all of them if none is near and they are few.
func didYouMean(typed string, names []string) string {
	var near []string
	for _, name := range names {
		if distance(strings.ToLower(typed), name) <= 1+len(name)/4 || len(typed) > 2 && strings.HasPrefix(name, strings.ToLower(typed)) {
			near = append(near, name)
		}
	}
	if len(near) > 0 {
		return "; did you mean " + strings.Join(near, " or ") + "?"
	}
	if len(names) > 0 && len(names) <= 16 {
		return "; there are " + strings.Join(names, ", ")
	}
	return ""
}

// distance is how many letters must be put in, left out, changed, or swapped
// with a neighbour to make b from a.
func distance(a, b string) int {
	rows := [3][]int{make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)}
	for j := range rows[1] {
		rows[1][j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, last, now := rows[0], rows[1], rows[2]
		now[0] = i
		for j := 1; j <= len(b); j++ {
			change := 1
			if a[i-1] == b[j-1] {
				change = 0
			}
			now[j] = min(last[j]+1, now[j-1]+1, last[j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				now[j] = min(now[j], before[j-2]+1)
			}
		}
		rows[0], rows[1], rows[2] = last, now, before
	}
	return rows[1][len(b)]
}

// oneOf checks a value against a list.
func oneOf(what, value string, names []string) error {
	if slices.Contains(names, value) {
		return nil
	}
	return usageError{fmt.Errorf("no %s %q%s", what, value, didYouMean(value, names))}
}

// helpCommand is cobra's, but a command that does not exist is wrong usage.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "help [COMMAND]",
		Short:   "Print the help of a command",
		Long:    "The same as COMMAND --help.",
		Example: "  tombolo help mesh join",
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			at, _, err := cmd.Root().Find(args)
			if err != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			var names []string
			for _, sub := range at.Commands() {
				names = append(names, sub.Name())
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			at := cmd.Root()
			for i, name := range args {
				sub, _, err := at.Find(args[i : i+1])
				if err != nil || sub == at {
					return usageError{unknownCommand(at, []string{name})}
				}
				at = sub
			}
			at.InitDefaultHelpFlag()
			return at.Help()
		},
	}
}
