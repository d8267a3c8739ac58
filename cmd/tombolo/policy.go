package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tombolo-mesh/tombolo/agent/policy/manifest"
	"github.com/tombolo-mesh/tombolo/agent/policy/trace"
)

func (c *cli) policyCommand() *cobra.Command {
	return group("policy", "Explain what network policy allows, and list policies",
		"Reads this node's agent, or with -f folders of Kubernetes manifests, for which nothing\nneeds to run.",
		"  tombolo policy trace shop/web shop/db 5432\n  tombolo policy trace -f manifests/ shop/web shop/db 5432\n  tombolo policy list",
		c.policyTraceCommand(), c.policyListCommand())
}

// folders is where policies are read from without an agent.
type folders struct {
	paths    []string
	clusters string
}

func (f *folders) flags(cmd *cobra.Command) {
	cmd.Flags().StringArrayVarP(&f.paths, "filename", "f", nil, "folder (or file) of manifests instead of the agent; CLUSTER=DIR names its cluster, and may be repeated")
	cmd.Flags().StringVar(&f.clusters, "policy-clusters", "own", "with -f: of which clusters selectors select pods that do not say: own, or all")
	cmd.RegisterFlagCompletionFunc("policy-clusters", cobra.FixedCompletions([]string{"own", "all"}, cobra.ShellCompDirectiveNoFileComp))
}

func (f *folders) given() bool { return len(f.paths) > 0 }

// unnamedCluster is the cluster of a folder that was not given one.
const unnamedCluster = "local"

var clusterFolder = regexp.MustCompile(`^([a-z0-9]([-a-z0-9]*[a-z0-9])?)=(.+)$`)

// read reads the folders; worlds of it can then be made again and again.
func (f *folders) read() (func() (*manifest.World, error), error) {
	if err := oneOf("--policy-clusters", f.clusters, []string{"own", "all"}); err != nil {
		return nil, err
	}
	var clusters []manifest.Cluster
	for _, path := range f.paths {
		name := unnamedCluster
		if m := clusterFolder.FindStringSubmatch(path); m != nil {
			if _, err := os.Stat(path); err != nil {
				name, path = m[1], m[3]
			}
		}
		folder, err := manifest.Read(path)
		if err != nil {
			return nil, fmt.Errorf("manifests of %s are not read:\n%w", path, err)
		}
		clusters = append(clusters, manifest.Cluster{Name: name, Folder: folder})
	}
	return func() (*manifest.World, error) { return manifest.NewWorld(clusters, f.clusters == "all") }, nil
}

func (c *cli) policyTraceCommand() *cobra.Command {
	var from folders
	var batch, exitCode bool
	cmd := &cobra.Command{
		Use:   "trace FROM TO PORT",
		Short: "Explain whether one end may connect to another, and which rules say so",
		Long: `FROM and TO: namespace/pod, cluster/namespace/pod, an IP address, node/NAME, host (the
node that the other end runs on), or world. PORT: 80, 80/tcp, 53/udp, a named port of
TO like http, or icmp. Both directions are judged: what policy says of what leaves
FROM, and of what reaches TO, with the rules that match, those that do not and why
not, and the policies nearby that do not select the pod.

With -f nothing needs to run: folders hold Namespace, Pod, Node, NetworkPolicy,
ClusterNetworkPolicy; a Deployment and the like stands for its pods. With several
folders, -f aws=DIR -f gcp=DIR, each end is judged by the policies of its cluster.

With --batch questions are read from standard input as JSON lines, {"from":"shop/web",
"to":"shop/db","port":5432,"protocol":"tcp","id":1}, and answered in a line each, in
order; a line that is no question gets an answer with an error. Empty lines get none.

Exit status: 0 answered, whatever the answer; with --exit-code 1 if it is denied (in a
batch: if any is, or any could not be answered).`,
		Example: `  tombolo policy trace shop/web shop/db 5432
  tombolo policy trace shop/web 203.0.113.7 443 -o json
  tombolo policy trace -f manifests/ world shop/web http --exit-code
  tombolo policy trace -f manifests/ --batch < questions.jsonl`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case batch && len(args) > 0:
				return fmt.Errorf("--batch reads its questions from standard input, got also %q", args[0])
			case !batch && len(args) != 3:
				return fmt.Errorf("'%s' needs FROM, TO and PORT, got %d of them", cmd.CommandPath(), len(args))
			}
			return nil
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			return c.completeEnds(from, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if batch {
				return c.traceBatch(cmd.Context(), from, exitCode)
			}
			q := trace.Question{From: args[0], To: args[1], Port: trace.Text(args[2])}
			if err := checkQuestion(q); err != nil {
				return err
			}
			a, err := c.traceOne(cmd.Context(), from, q)
			if err != nil {
				return err
			}
			if c.output == "json" {
				err = c.printJSON("PolicyTrace", a)
			} else {
				_, err = fmt.Fprint(c.env.Stdout, printableText(a.Text()))
			}
			if err == nil && exitCode && a.Verdict == trace.Denied {
				return errAnswered
			}
			return err
		},
	}
	from.flags(cmd)
	cmd.Flags().BoolVar(&batch, "batch", false, "answer JSON lines from standard input")
	cmd.Flags().BoolVar(&exitCode, "exit-code", false, "exit with 1 if it is denied")
	return c.answers(cmd)
}

// checkQuestion tells mistakes of typing from ends that are not there.
func checkQuestion(q trace.Question) error {
	for _, end := range []string{q.From, q.To} {
		if _, err := trace.ParseEnd(end); err != nil {
			return usageError{err}
		}
	}
	if _, err := trace.ParsePort(string(q.Port), ""); err != nil {
		return usageError{err}
	}
	return nil
}

func (c *cli) traceOne(ctx context.Context, from folders, q trace.Question) (*trace.Answer, error) {
	if from.given() {
		w, err := from.world()
		if err != nil {
			return nil, err
		}
		return trace.Trace(w, q)
	}
	body, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	text, err := c.callAgent(ctx, http.MethodPost, "/v1/policy/trace", body)
	if err != nil {
		return nil, err
	}
	var a trace.Answer
	if err := json.Unmarshal(text, &a); err != nil {
		return nil, fmt.Errorf("answer of the agent is not understood (another version?): %w", err)
	}
	return &a, nil
}

func (f *folders) world() (*manifest.World, error) {
	again, err := f.read()
	if err != nil {
		return nil, err
	}
	return again()
}

func (c *cli) policyListCommand() *cobra.Command {
	var from folders
	var namespace string
	cmd := c.answers(&cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List network policies in the order in which they are evaluated",
		Long: `ORDER is the tier, with the priority within it. PODS is how many pods of this node
(with -f: of the folder) a policy selects; ISOLATES in which directions it denies what
no policy allows. A policy that cannot be followed is refused: PROBLEM says why and
what holds in its place.`,
		Example: "  tombolo policy list\n  tombolo policy list -n shop\n  tombolo policy list -f manifests/ -o json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := c.policies(cmd.Context(), from)
			if err != nil {
				return err
			}
			list.Items = slices.DeleteFunc(list.Items, func(p trace.PolicySummary) bool { return namespace != "" && p.Namespace != namespace })
			if c.output == "json" {
				return c.printJSON("PolicyList", list)
			}
			if len(list.Items) == 0 {
				fmt.Fprintln(c.env.Stderr, "there are no policies")
				return nil
			}
			return table(c.env.Stdout, "NAMESPACE NAME ORDER PODS ISOLATES INGRESS EGRESS PROBLEM", policyRows(list.Items))
		},
	})
	from.flags(cmd)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "only policies of this namespace")
	return cmd
}

func policyRows(items []trace.PolicySummary) [][]string {
	var rows [][]string
	for _, p := range items {
		order := p.Tier
		if p.Priority != nil {
			order += fmt.Sprintf(" %d", *p.Priority)
		}
		rows = append(rows, []string{
			p.Namespace, p.Name, order, fmt.Sprint(p.Pods), strings.Join(p.Isolates, ","),
			count(p.IngressRules, "rule"), count(p.EgressRules, "rule"), strings.Join(p.Problems, "; "),
		})
	}
	return rows
}

func (c *cli) policies(ctx context.Context, from folders) (trace.PolicyList, error) {
	if from.given() {
		w, err := from.world()
		if err != nil {
			return trace.PolicyList{}, err
		}
		return trace.List(w.Summaries()), nil
	}
	var list trace.PolicyList
	body, err := c.getAgent(ctx, "/v1/policy")
	if err == nil {
		if err = json.Unmarshal(body, &list); err != nil {
			err = fmt.Errorf("answer of the agent is not understood (another version?): %w", err)
		}
	}
	return list, err
}

// completeEnds offers the pods of the folders.
func (c *cli) completeEnds(from folders, args []string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 1 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names := []string{"world", "host"}
	if from.given() {
		if w, err := from.world(); err == nil {
			for _, name := range w.Pods() {
				names = appendPlain(names, name)
			}
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
