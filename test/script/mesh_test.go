package script

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

var update = flag.Bool("update", false, "write what the scripts print into them; read the difference before you commit it")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestMesh runs the scripts of the folder mesh. Each has the manifests of its
// clusters in folders of their names. Everything is as in production but for the
// store, which is in memory, and the kernel, which is tables in memory: a mesh API
// server of each cluster with its port on loopback, and agents that register and
// follow by TLS. See apply for how a change is waited for.
//
//	start CLUSTER ID PREFIX...     start a mesh API server on the folder CLUSTER, with these pod prefixes
//	start CLUSTER                  start it again as it was
//	halt CLUSTER                   stop it; its store stays
//	[!] join A B                   B joins the mesh of A; what went wrong is in stderr
//	remove A B                     A takes B out of its mesh
//	drain A B [NS/NAME]            the operator of A drains B at once; undrain brings it back
//	node CLUSTER/NODE ADDR[,ADDR] [LINK...]
//	                               register a node and start its agent; LINKs are the prefixes of its L2
//	agent halt|start CLUSTER/NODE  stop a node's agent; its tables and its state directory stay
//	agent keep CLUSTER/NODE        wait until its snapshot on disk says what it knows
//	boot CLUSTER/NODE              empty the tables of a node without an agent, as a boot does
//	pod CLUSTER/NODE NS/NAME ready|unready|gone [ADDR...]
//	connect CLUSTER/NODE NS/NAME [ADDR...]
//	                               connect a pod of the node, or (without an address) take it down
//	apply FILE CLUSTER/FILE        put a manifest in place of another, or beside the others
//	delete CLUSTER/FILE            remove one
//	cut CLUSTER, heal CLUSTER      its store does not answer, or does again
//	wipe CLUSTER                   its store is from now on another, empty one
//	save CLUSTER, restore CLUSTER  back its store up; put the backup in its place
//	forge CLUSTER node NAME PREFIX | address NODE ADDR | endpoint NS/SERVICE ADDR
//	                               write a record straight into its store
//	stale CLUSTER                  others do not believe it from now on: do not wait for them
//	down NODE..., up NODE...       these nodes do not answer probes, or do again; waits until that is judged
//	records PREFIX                 print records, PREFIX as in export/aws/service
//	tables CLUSTER/NODE TABLE...   print tables of a node
//	explain CLUSTER/NODE NS/NAME   print where the node sends a service
//	changes CLUSTER/NODE           print the rows that were written or removed since the last time, sorted
//	resets CLUSTER/NODE            print the backends whose sockets the node was to reset since the last time
//	health CLUSTER/NODE            print what the node answers at health check ports
//	problems CLUSTER[/NODE]        print the problems a mesh API server or an agent names
//	problem CLUSTER[/NODE] REGEXP  wait until it names such a problem
//
// What prints waits first until all has arrived that can arrive.
func TestMesh(t *testing.T) {
	dir, err := filepath.Abs("mesh")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: dir, UpdateScripts: *update, RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error {
			w := newWorld(env.WorkDir)
			env.Values["world"] = w
			env.Defer(w.close)
			return nil
		},
		Cmds: commands,
	})
}

// command is what a script's line does; its error fails the script.
type command func(w *world, ts *testscript.TestScript, args []string) error

var commands = map[string]func(*testscript.TestScript, bool, []string){
	"start":   run(1, cmdStart),
	"halt":    run(1, func(w *world, _ *testscript.TestScript, args []string) error { return w.with(args[0], (*cluster).halt) }),
	"join":    run(2, cmdJoin),
	"remove":  run(2, cmdRemove),
	"drain":   run(2, drain(false)),
	"undrain": run(2, drain(true)),
	"node":    run(2, cmdNode),
	"agent":   run(2, cmdAgent),
	"boot":    run(1, cmdBoot),
	"pod":     run(3, cmdPod),
	"connect": run(2, cmdConnect),
	"apply":   run(2, cmdApply),
	"delete":  run(1, cmdDelete),
	"cut":     run(1, func(w *world, _ *testscript.TestScript, args []string) error { return w.with(args[0], (*cluster).cut) }),
	"heal":    run(1, func(w *world, _ *testscript.TestScript, args []string) error { return w.with(args[0], (*cluster).heal) }),
	"wipe":    run(1, func(w *world, _ *testscript.TestScript, args []string) error { return w.with(args[0], (*cluster).wipe) }),
	"save":    run(1, func(w *world, _ *testscript.TestScript, args []string) error { return w.with(args[0], (*cluster).save) }),
	"restore": run(1, func(w *world, _ *testscript.TestScript, args []string) error {
		return w.with(args[0], (*cluster).restore)
	}),
	"forge": run(4, func(w *world, _ *testscript.TestScript, args []string) error {
		return w.with(args[0], func(c *cluster) error { return c.forge(args[1], args[2], args[3]) })
	}),
	"stale": run(1, func(w *world, _ *testscript.TestScript, args []string) error {
		return w.with(args[0], func(c *cluster) error { c.stale = true; return nil })
	}),
	"down":     run(1, func(w *world, _ *testscript.TestScript, args []string) error { return w.probes(args, false) }),
	"up":       run(1, func(w *world, _ *testscript.TestScript, args []string) error { return w.probes(args, true) }),
	"records":  run(1, cmdRecords),
	"tables":   run(2, cmdTables),
	"explain":  run(2, cmdExplain),
	"changes":  run(1, cmdChanges),
	"resets":   run(1, cmdResets),
	"health":   run(1, cmdHealth),
	"problems": run(1, cmdProblems),
	"problem":  run(2, cmdProblem),
}

// run makes a command of testscript. A ! before it wants it to fail; why it
// failed is on stderr.
func run(least int, c command) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if len(args) < least {
			ts.Fatalf("at least %d arguments are needed", least)
		}
		err := c(ts.Value("world").(*world), ts, args)
		switch {
		case neg && err == nil:
			ts.Fatalf("it succeeded")
		case neg:
			fmt.Fprintln(ts.Stderr(), err)
		case err != nil:
			ts.Fatalf("%v", err)
		}
	}
}

func cmdStart(w *world, _ *testscript.TestScript, args []string) error {
	if len(args) == 1 {
		return w.with(args[0], (*cluster).start)
	}
	id, err := strconv.ParseUint(args[1], 10, 16)
	if err != nil {
		return err
	}
	prefixes, err := parsePrefixes(args[2:])
	if err != nil {
		return err
	}
	return w.cluster(args[0], uint16(id), prefixes).start()
}

func cmdJoin(w *world, _ *testscript.TestScript, args []string) error {
	a, b := w.clusters[args[0]], w.clusters[args[1]]
	if a == nil || b == nil {
		return fmt.Errorf("no cluster %v", args)
	}
	return b.join(a)
}

func cmdRemove(w *world, _ *testscript.TestScript, args []string) error {
	return w.with(args[0], func(c *cluster) error { return c.remove(args[1]) })
}

func drain(back bool) command {
	return func(w *world, _ *testscript.TestScript, args []string) error {
		req := &pb.DrainRequest{Cluster: args[1], Back: back}
		if len(args) > 2 {
			req.Service = args[2]
		}
		return w.with(args[0], func(c *cluster) error {
			// That a service is global is known once it is published.
			if err := w.settle(); err != nil {
				return err
			}
			return c.admin(func(ctx context.Context, at pb.AdminClient) error {
				_, err := at.Drain(ctx, req)
				return err
			})
		})
	}
}

func cmdNode(w *world, _ *testscript.TestScript, args []string) error {
	c, name, err := w.split(args[0])
	if err != nil {
		return err
	}
	return c.addNode(name, args[1], args[2:])
}

func cmdAgent(w *world, _ *testscript.TestScript, args []string) error {
	n, err := w.node(args[1])
	if err != nil {
		return err
	}
	switch args[0] {
	case "halt":
		n.haltAgent()
		return nil
	case "start":
		return n.startAgent()
	case "keep":
		return n.keep()
	}
	return fmt.Errorf("agent %s: want halt, start or keep", args[0])
}

func cmdBoot(w *world, _ *testscript.TestScript, args []string) error {
	n, err := w.node(args[0])
	if err != nil {
		return err
	}
	if n.agent != nil {
		return fmt.Errorf("halt the agent of %s first", args[0])
	}
	n.kernel = newKernel()
	return nil
}

func cmdPod(w *world, _ *testscript.TestScript, args []string) error {
	n, err := w.node(args[0])
	if err != nil {
		return err
	}
	return n.registerPod(args[1], args[2], args[3:])
}

func cmdConnect(w *world, _ *testscript.TestScript, args []string) error {
	n, err := w.node(args[0])
	if err != nil {
		return err
	}
	return n.connectPod(args[1], args[2:])
}

func cmdApply(w *world, ts *testscript.TestScript, args []string) error {
	c, file, err := w.split(args[1])
	if err != nil {
		return err
	}
	return c.apply(file, ts.ReadFile(args[0]))
}

func cmdDelete(w *world, _ *testscript.TestScript, args []string) error {
	c, file, err := w.split(args[0])
	if err != nil {
		return err
	}
	return os.Remove(filepath.Join(c.dir, file))
}

func cmdRecords(w *world, ts *testscript.TestScript, args []string) error {
	if err := w.settle(); err != nil {
		return err
	}
	for _, prefix := range args {
		_, rest, _ := strings.Cut(prefix, "/")
		name, _, _ := strings.Cut(rest, "/")
		text, err := w.clusters[name].records(prefix)
		if err != nil {
			return err
		}
		fmt.Fprint(ts.Stdout(), text)
	}
	return nil
}

func cmdTables(w *world, ts *testscript.TestScript, args []string) error {
	n, err := w.node(args[0])
	if err != nil {
		return err
	}
	if err := w.settle(); err != nil {
		return err
	}
	for _, name := range args[1:] {
		print := n.kernel.text[name]
		if print == nil {
			return fmt.Errorf("no table %s", name)
		}
		if len(args) > 2 {
			fmt.Fprintf(ts.Stdout(), "# %s\n", name)
		}
		fmt.Fprint(ts.Stdout(), print())
	}
	return nil
}

func cmdExplain(w *world, ts *testscript.TestScript, args []string) error {
	n, err := w.node(args[0])
	if err != nil {
		return err
	}
	if err := w.settle(); err != nil {
		return err
	}
	e, err := n.explain(args[1])
	fmt.Fprint(ts.Stdout(), e.Text)
	return err
}

func cmdChanges(w *world, ts *testscript.TestScript, args []string) error {
	n, err := w.node(args[0])
	if err != nil {
		return err
	}
	if err := w.settle(); err != nil {
		return err
	}
	fmt.Fprint(ts.Stdout(), n.kernel.takeChanges())
	return nil
}

func cmdProblems(w *world, ts *testscript.TestScript, args []string) error {
	if err := w.settle(); err != nil {
		return err
	}
	text, err := w.problems(args[0])
	fmt.Fprint(ts.Stdout(), text)
	return err
}

func cmdProblem(w *world, _ *testscript.TestScript, args []string) error {
	re, err := regexp.Compile(args[1])
	if err != nil {
		return err
	}
	return eventually(func() error {
		text, err := w.problems(args[0])
		if err == nil && !re.MatchString(text) {
			err = fmt.Errorf("problems:\n%s", text)
		}
		return err
	})
}

// problems are those of a mesh API server or of an agent, one a line, sorted.
func (w *world) problems(of string) (string, error) {
	var lines []string
	if strings.Contains(of, "/") {
		n, err := w.node(of)
		if err != nil {
			return "", err
		}
		st, err := n.status()
		if err != nil {
			return "", err
		}
		for _, p := range st.Problems {
			lines = append(lines, fmt.Sprintf("%s: %s; %s\n", p.What, p.Why, p.Fix))
		}
	} else if err := w.with(of, func(c *cluster) (err error) { lines, err = c.problems(); return err }); err != nil {
		return "", err
	}
	slices.Sort(lines)
	return w.scrub(strings.Join(lines, "")), nil
}

// limit is how long anything may take to arrive; each script is much faster.
const limit = 20 * time.Second

// eventually waits until ok yields no error. It looks again when the machine had
// time to do something.
func eventually(ok func() error) error {
	var err error
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if err = ok(); err == nil {
			return nil
		}
	}
	return fmt.Errorf("not within %v: %w", limit, err)
}
