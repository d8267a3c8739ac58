package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// used is what all processes of one program cost on a machine of the lab.
type used struct {
	machine, program string
	pss              int64   // bytes: shared memory counted in parts
	cpu              float64 // percent of a core
}

type process struct {
	machine, program string
	pss, ticks       int64
}

// usage measures the lab's machines for a while.
func (l *Lab) usage(ctx context.Context, d time.Duration) ([]used, error) {
	before := l.processes()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(d):
	}
	type key struct{ machine, program string }
	sums := map[key]used{}
	for pid, p := range l.processes() {
		k := key{p.machine, p.program}
		u := sums[k]
		u.machine, u.program = p.machine, p.program
		u.pss += p.pss
		if b, ok := before[pid]; ok {
			u.cpu += float64(p.ticks-b.ticks) / 100 / d.Seconds() * 100 // USER_HZ is 100 everywhere
		}
		sums[k] = u
	}
	var out []used
	for _, u := range sums {
		out = append(out, u)
	}
	slices.SortFunc(out, func(a, b used) int {
		return cmp.Or(cmp.Compare(a.machine, b.machine), cmp.Compare(a.program, b.program))
	})
	return out, nil
}

// processes are those below the cgroups of the lab's machines, by process ID.
func (l *Lab) processes() map[string]process {
	out := map[string]process{}
	dirs, _ := filepath.Glob(filepath.Join(l.Dir, "m", "*"))
	for _, dir := range dirs {
		groups, _ := os.ReadFile(filepath.Join(dir, "cgroups"))
		for group := range strings.Lines(string(groups)) {
			if !strings.Contains(group, "unified") && !isV2(strings.TrimSpace(group)) {
				continue
			}
			filepath.WalkDir(strings.TrimSpace(group), func(path string, e os.DirEntry, err error) error {
				if err != nil || e.Name() != "cgroup.procs" {
					return nil
				}
				pids, _ := os.ReadFile(path)
				for _, pid := range strings.Fields(string(pids)) {
					if p, ok := readProcess(pid); ok {
						p.machine = filepath.Base(dir)
						out[pid] = p
					}
				}
				return nil
			})
		}
	}
	return out
}

func isV2(group string) bool {
	_, err := os.Stat(filepath.Join(group, "cgroup.controllers"))
	return err == nil
}

func readProcess(pid string) (p process, ok bool) {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return p, false
	}
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	fields := strings.Fields(string(stat[end+1:]))
	if open < 0 || len(fields) < 13 {
		return p, false
	}
	p.program = string(stat[open+1 : end])
	if exe, err := os.Readlink("/proc/" + pid + "/exe"); err == nil {
		p.program = filepath.Base(exe)
	}
	for _, f := range fields[11:13] {
		n, _ := strconv.ParseInt(f, 10, 64)
		p.ticks += n
	}
	rollup, _ := os.ReadFile("/proc/" + pid + "/smaps_rollup")
	for lines := bufio.NewScanner(bytes.NewReader(rollup)); lines.Scan(); {
		if f := strings.Fields(lines.Text()); len(f) > 1 && f[0] == "Pss:" {
			kb, _ := strconv.ParseInt(f[1], 10, 64)
			p.pss = kb << 10
		}
	}
	return p, true
}

// watches counts those that are open on a cluster's kube-apiserver.
func (c *Cluster) watches(ctx context.Context) (int, error) {
	text, err := c.Client.Discovery().RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return 0, err
	}
	sum := 0
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "apiserver_longrunning_requests{") && strings.Contains(line, `verb="WATCH"`) {
			n, _ := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:len(line)-1], 64)
			sum += int(n)
		}
	}
	return sum, nil
}
