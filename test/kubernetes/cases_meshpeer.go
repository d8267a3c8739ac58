package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Kubectl runs kubectl against the cluster: that of the lab, or the user's.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	program := "kubectl"
	if c.world.Lab != nil {
		program = filepath.Join(c.world.Lab.bin, program)
	}
	cmd := exec.CommandContext(ctx, program, append(args, "--context", c.Context)...)
	cmd.Env = c.env()
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: kubectl %s: %w: %s", c.Name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return out.String(), nil
}

// waitFor is `kubectl wait` for conditions of a MeshPeer.
func (c *Cluster) waitFor(t *T, peer string, conditions ...string) {
	for _, condition := range conditions {
		_, err := c.Kubectl(t.ctx, "wait", "-n", systemNamespace, "meshpeer/"+peer, "--for=condition="+condition, "--timeout=60s")
		t.OK(err, "wait for %s", condition)
	}
}

const meshPeerManifest = `
apiVersion: tombolo.io/v1alpha1
kind: MeshPeer
metadata: {name: %s, namespace: %s}
spec: %s
`

// meshPeer parts the clusters, joins them by resources alone, parts them by deleting
// one, and leaves them joined as they were.
func meshPeer(t *T) {
	a, b := t.Clusters[0], t.Clusters[1]
	t.Cleanup(func() { t.joinAgain(a, b) })
	_, err := a.Tombolo(t.ctx, "mesh", "remove", b.Name)
	t.OK(err, "part")
	a.Apply(t, systemNamespace, meshPeerManifest, b.Name, systemNamespace, "{invite: {}}")
	var token string
	t.Within(time.Minute, "a token in a Secret", func() error {
		u, err := a.Get(t.ctx, "v1", "Secret", systemNamespace, b.Name+"-token")
		if err != nil {
			return err
		}
		text, _, _ := unstructured.NestedString(u.Object, "data", "token")
		raw, err := base64.StdEncoding.DecodeString(text)
		token = string(raw)
		return err
	})
	begin := time.Now()
	b.Apply(t, systemNamespace, `
apiVersion: v1
kind: Secret
metadata: {name: token-of-%[1]s, namespace: %[2]s}
stringData: {token: %[3]q}
`, a.Name, systemNamespace, token)
	t.Cleanup(func() {
		b.Kubectl(context.Background(), "delete", "secret", "-n", systemNamespace, "--ignore-not-found", "token-of-"+a.Name)
	})
	b.Apply(t, systemNamespace, meshPeerManifest, a.Name, systemNamespace, "{tokenSecretRef: {name: token-of-"+a.Name+"}}")
	a.waitFor(t, b.Name, "Joined", "Reachable", "Synced")
	b.waitFor(t, a.Name, "Joined", "Reachable", "Synced")
	t.Note("%.1f s until both have waited for Joined, Reachable and Synced", time.Since(begin).Seconds())
	t.Within(time.Minute, "the used token is taken away", func() error {
		if _, err := a.Get(t.ctx, "v1", "Secret", systemNamespace, b.Name+"-token"); err == nil {
			return fmt.Errorf("token Secret %s-token is there", b.Name)
		}
		return nil
	})
	out, err := a.Kubectl(t.ctx, "get", "meshpeers", "-n", systemNamespace)
	t.OK(err, "list MeshPeers")
	if head := strings.Join(strings.Fields(firstLine(out)), " "); head != "NAME JOINED REACHABLE SYNCED REASON AGE" {
		t.Fatalf("columns: %s", head)
	}
	out, err = a.Tombolo(t.ctx, "mesh", "status")
	t.OK(err, "mesh status")
	if !strings.Contains(out, "MESHPEER") || !strings.Contains(out, "invites") {
		t.Fatalf("mesh status does not list the MeshPeer:\n%s", out)
	}
	_, err = a.Kubectl(t.ctx, "delete", "meshpeer", "-n", systemNamespace, b.Name, "--timeout=60s")
	t.OK(err, "delete the MeshPeer")
	_, err = b.Kubectl(t.ctx, "wait", "-n", systemNamespace, "meshpeer/"+a.Name, "--for=condition=Joined=false", "--timeout=60s")
	t.OK(err, "the other side learns that they have parted")
	_, err = b.Kubectl(t.ctx, "delete", "meshpeer", "-n", systemNamespace, a.Name, "--timeout=60s")
	t.OK(err, "delete the other MeshPeer")
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// joinAgain takes away what is left of MeshPeers, and joins by hand.
func (t *T) joinAgain(a, b *Cluster) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	for _, c := range []*Cluster{a, b} {
		if _, err := c.Kubectl(ctx, "delete", "meshpeers", "--all", "-n", systemNamespace, "--timeout=60s"); err != nil {
			t.Logf("%v", err)
		}
		if _, err := c.Tombolo(ctx, "mesh", "leave", "--force"); err != nil {
			t.Logf("%v", err)
		}
	}
	out, err := a.Tombolo(ctx, "mesh", "invite", "-o", "json")
	var answer struct{ Token string }
	if err == nil {
		err = json.Unmarshal([]byte(out), &answer)
	}
	if err == nil {
		_, err = b.Tombolo(ctx, "mesh", "join", answer.Token)
	}
	if err != nil {
		t.Logf("the clusters could not be joined again: %v", err)
	}
}
