// Package charttest has what the chart starts, out of its golden renderings, for
// tests of the programs: each parses it with its own command line.
package charttest

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// Start is one command line of a pod.
type Start struct {
	Where string // golden file, object, container
	Args  []string
}

// Fields are what Kubernetes puts into variables, by the field that is asked for.
type Fields map[string]string

var usual = Fields{
	"metadata.name": "tombolo-apiserver-0", "metadata.namespace": "tombolo-system", "spec.nodeName": "n1",
	"status.hostIP": "10.0.0.1", "status.hostIPs": "10.0.0.1,fd00::1",
}

// Starts are all command lines of a program in the golden files of a folder:
// containers, init containers and probes. Variables in them are filled in, by
// fields where they say it; one that is nowhere said fails the test.
func Starts(t testing.TB, dir, program string, fields Fields) []Start {
	t.Helper()
	values := maps.Clone(usual)
	maps.Copy(values, fields)
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files in %s: %v", dir, err)
	}
	var all []Start
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for doc := range strings.SplitSeq(string(text), "\n---\n") {
			var object map[string]any
			if err := yaml.Unmarshal([]byte(doc), &object); err != nil {
				continue // the notes, which are no YAML
			}
			kind, _ := object["kind"].(string)
			w := walk{t: t, program: program, fields: values, where: filepath.Base(path) + " " + kind}
			w.value(object, nil)
			all = append(all, w.found...)
		}
	}
	return all
}

type walk struct {
	t              testing.TB
	program, where string
	fields         Fields
	found          []Start
}

// value looks for commands below a value; env are the variables of the container
// that it lies in.
func (w *walk) value(v any, env map[string]string) {
	switch v := v.(type) {
	case []any:
		for _, one := range v {
			w.value(one, env)
		}
	case map[string]any:
		if list, ok := v["env"].([]any); ok {
			env = variables(list, w.fields)
		}
		if command := texts(v["command"]); len(command) > 0 && command[0] == w.program {
			args := append(command[1:], texts(v["args"])...)
			name, _ := v["name"].(string)
			where := strings.TrimSpace(w.where + " " + name)
			for i := range args {
				args[i] = w.filled(where, args[i], env)
			}
			w.found = append(w.found, Start{where, args})
		}
		for _, one := range v {
			w.value(one, env)
		}
	}
}

var variable = regexp.MustCompile(`\$\(([A-Z_]+)\)`)

func (w *walk) filled(where, arg string, env map[string]string) string {
	return variable.ReplaceAllStringFunc(arg, func(use string) string {
		value, ok := env[use[2:len(use)-1]]
		if !ok {
			w.t.Errorf("%s: %s uses a variable that the container does not have", where, arg)
		}
		return value
	})
}

func variables(list []any, fields Fields) map[string]string {
	env := make(map[string]string)
	for _, one := range list {
		one, _ := one.(map[string]any)
		name, _ := one["name"].(string)
		value, _ := one["value"].(string)
		if from, ok := one["valueFrom"].(map[string]any); ok {
			ref, _ := from["fieldRef"].(map[string]any)
			path, _ := ref["fieldPath"].(string)
			value = fields[path]
		}
		env[name] = value
	}
	return env
}

func texts(v any) (out []string) {
	list, _ := v.([]any)
	for _, one := range list {
		s, _ := one.(string)
		out = append(out, s)
	}
	return out
}
