package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// machine is where figures were taken, and how busy it was with other things.
type machine struct {
	Kernel, CPU            string
	CPUs                   int
	LoadBefore, LoadAfter  string
	KubeProxy              string
	NFTables, IPTables     string
	Runs                   int
	MeasurementMS          int64
	ClientAndServerPinTo   int
	TCPCongestionControl   string
	SourcePortsAreDistinct bool
}

func (o *options) machine() machine {
	var u unix.Utsname
	unix.Uname(&u)
	m := machine{Kernel: unix.ByteSliceToString(u.Release[:]), CPU: cpuModel(), CPUs: runtime.NumCPU(), LoadBefore: load(),
		Runs: o.runs, MeasurementMS: o.each.Milliseconds(), ClientAndServerPinTo: o.cpu, TCPCongestionControl: "cubic", SourcePortsAreDistinct: true}
	if o.kubeProxy != "" {
		m.KubeProxy, m.NFTables, m.IPTables = says(o.kubeProxy, "--version"), says("nft", "--version"), says("iptables", "--version")
	}
	return m
}

func (m machine) print(w io.Writer) {
	fmt.Fprintf(w, "# Data plane: %d runs of %d ms, client and server on CPU %d\n\n", m.Runs, m.MeasurementMS, m.ClientAndServerPinTo)
	fmt.Fprintf(w, "%d × %s, Linux %s; load average %s before", m.CPUs, m.CPU, m.Kernel, m.LoadBefore)
	if m.LoadAfter != "" {
		fmt.Fprintf(w, ", %s after (about 1 is the benchmark's own)", m.LoadAfter)
	}
	fmt.Fprintln(w, ".")
	if m.KubeProxy != "" {
		fmt.Fprintf(w, "kube-proxy: %s; %s; %s.\n", m.KubeProxy, m.NFTables, m.IPTables)
	}
}

func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(b))[:3], " ")
}

func cpuModel() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// says is the first line that a program prints.
func says(program string, args ...string) string {
	out, err := exec.Command(program, args...).Output()
	if err != nil {
		return program + ": " + err.Error()
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}
