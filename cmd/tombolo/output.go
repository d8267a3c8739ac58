package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/spf13/cobra"
)

// apiVersion of every JSON document; fields are only ever added to it.
const apiVersion = "tombolo.io/v1"

// answers adds -o to a command whose answer can be JSON.
func (c *cli) answers(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVarP(&c.output, "output", "o", "", "json, or nothing for people")
	cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"json"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if c.output != "" && c.output != "json" {
			return usageError{fmt.Errorf("unknown output %q: want json, or leave it out", c.output)}
		}
		return nil
	}
	return cmd
}

// printJSON writes a versioned JSON document: v's fields beside apiVersion and
// kind.
func (c *cli) printJSON(kind string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	doc := map[string]json.RawMessage{}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return fmt.Errorf("answer is not a JSON object (another version?): %w", err)
	}
	if _, ok := doc["apiVersion"]; !ok {
		doc["apiVersion"], _ = json.Marshal(apiVersion)
		doc["kind"], _ = json.Marshal(kind)
	}
	text, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.env.Stdout, escapeJSON(string(text)))
	return err
}

// escapeJSON escapes what a terminal may obey or reorder. All of it stands in
// strings, where JSON reads the escapes back.
func escapeJSON(s string) string {
	return escape(s, func(r rune) bool { return r == '\n' || r > 0xffff || unicode.IsPrint(r) })
}

// table prints rows under a header, in columns. Cells are escaped.
func table(w io.Writer, header string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.ReplaceAll(header, " ", "\t"))
	for _, row := range rows {
		cells := make([]string, len(row))
		for i := range row {
			cells[i] = orDefault(printable(row[i]), "-")
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	return t.Flush()
}

// printable escapes whatever is not plainly visible: names come from other
// clusters, and a terminal obeys what it is sent.
func printable(s string) string { return escape(s, func(r rune) bool { return unicode.IsPrint(r) }) }

// printableText is printable for text of several lines.
func printableText(s string) string {
	return escape(s, func(r rune) bool { return r == '\n' || unicode.IsPrint(r) })
}

func escape(s string, visible func(rune) bool) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case visible(r):
			b.WriteRune(r)
		case r > 0xffff:
			fmt.Fprintf(&b, "\\U%08x", r)
		default:
			fmt.Fprintf(&b, "\\u%04x", r)
		}
	}
	return b.String()
}

func orDefault(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// count is a number with its noun.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
