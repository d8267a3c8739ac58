// Command kubernetes runs Tombolo on real Kubernetes clusters, case by case, and
// ends with a table of what held: on a lab of its own (lab/), or on clusters
// that a kubeconfig names.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
)

// options are the flags.
type options struct {
	contexts   string // of clusters that are there; empty: a lab
	kubeconfig string
	labDir     string // of a lab that is up, to use and to leave
	labScripts string
	labBin     string
	bin        string
	image      string
	other      string // folder of another version's programs and image, to upgrade to and back; empty: the settings change alone
	echoImage  string
	set        string // of the chart, as helm's --set takes it
	logs       string
	dual       bool
	chained    bool
	keep       bool
	installed  bool
	list       bool
	run        *regexp.Regexp
}

func main() {
	janitor()
	// What client-go has to say of connections that we close is no news.
	klog.SetLogger(logr.Discard())
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	o, err := parse(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err == nil {
		err = suite(ctx, o, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "test-kubernetes:", err)
		os.Exit(1)
	}
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	var run string
	f := flag.NewFlagSet("kubernetes", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.contexts, "contexts", "", "two contexts of the kubeconfig, as kind-a,kind-b (default: a lab of its own, which needs root)")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig of -contexts (default: KUBECONFIG, or ~/.kube/config)")
	f.StringVar(&o.labDir, "lab", "", "folder of a lab that is up, to be used and left")
	f.StringVar(&o.labScripts, "lab-scripts", "test/kubernetes/lab", "folder of the lab's scripts")
	f.StringVar(&o.labBin, "lab-bin", "", "folder of the lab's programs (default: LAB_BIN, or .cache/kubernetes/bin)")
	f.StringVar(&o.bin, "bin", "bin", "folder of Tombolo's programs")
	f.StringVar(&o.image, "image", "bin/tombolo-image.tar", "Tombolo's image")
	f.StringVar(&o.other, "other", "", "folder bin of another version, with its programs and image, that the case rolling-upgrade goes to and back from; on -contexts, load its image into the clusters first")
	f.StringVar(&o.echoImage, "echo-image", "lab.local/echo:1", "image of the test's workloads; on -contexts, load it into the clusters first")
	f.StringVar(&o.set, "set", "", "further values of the chart, as key=value,key=value: where your distribution has its CNI folders, say")
	f.StringVar(&o.logs, "logs", "bin/test-kubernetes", "folder for what is known about cases that failed")
	f.BoolVar(&o.dual, "dual", false, "IPv4 and IPv6")
	f.BoolVar(&o.chained, "chained", false, "another CNI plugin connects the pods and kube-proxy is there, Tombolo comes beside them (in a lab)")
	f.BoolVar(&o.keep, "keep", false, "leave everything as it is at the end")
	f.BoolVar(&o.installed, "installed", false, "Tombolo is there and joined already")
	f.BoolVar(&o.list, "list", false, "list the cases")
	f.StringVar(&run, "run", "", "only the cases whose name matches this regular expression")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("%q: this takes flags only, see -help", f.Args())
	}
	if o.contexts != "" && len(strings.Split(o.contexts, ",")) != 2 {
		return o, fmt.Errorf("-contexts %q: give two contexts of the kubeconfig, as kind-a,kind-b", o.contexts)
	}
	if o.chained && o.contexts != "" {
		return o, errors.New("-chained is the lab's: of clusters that are there, give their own prefixes by -set")
	}
	var err error
	if o.run, err = regexp.Compile(run); err != nil {
		return o, fmt.Errorf("-run: %w", err)
	}
	if o.labBin == "" {
		o.labBin = os.Getenv("LAB_BIN")
	}
	if o.labBin == "" {
		o.labBin = ".cache/kubernetes/bin"
	}
	return o, nil
}

// suite opens the world, runs the cases in it, and removes what it made.
func suite(ctx context.Context, o options, out io.Writer) (err error) {
	if o.list {
		for _, c := range cases() {
			fmt.Fprintf(out, "%-28s %s\n", c.Name, c.Claim)
		}
		return nil
	}
	w, err := open(ctx, o, out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	results := w.runCases(ctx, cases())
	return summary(out, results)
}
