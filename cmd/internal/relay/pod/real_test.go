package pod

import (
	"cmp"
	"os"
	"testing"
)

// Against real clusters with Tombolo installed: every program's every pod answers.
func TestRealClusters(t *testing.T) {
	file := os.Getenv("TOMBOLO_TEST_KUBECONFIG")
	if file == "" {
		t.Skip("TOMBOLO_TEST_KUBECONFIG names no kubeconfig of real clusters with Tombolo installed")
	}
	contexts, err := Contexts([]string{file})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range contexts {
		c, err := Open(Config{Kubeconfig: []string{file}, Context: name, Namespace: cmp.Or(os.Getenv("TOMBOLO_TEST_NAMESPACE"), "tombolo-system")})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range []Program{APIServer, Agent} {
			targets, err := c.Find(t.Context(), p, "")
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			for _, target := range targets {
				conn, err := c.Dial(t.Context(), target)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				conn.Close()
			}
		}
	}
}
