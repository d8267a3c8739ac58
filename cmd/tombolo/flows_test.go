package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"unicode"

	"github.com/tombolo-mesh/tombolo/agent"
)

func someFlow() agent.Flow {
	return agent.Flow{APIVersion: agent.APIVersion, Kind: "Flow", Time: testNow, Verdict: agent.FlowDropped, Reason: "drop_policy_ingress", Direction: "ingress", Protocol: "tcp",
		Source:      agent.FlowEnd{Name: "gcp/shop/" + nasty, Address: "10.2.1.10", Port: 40000, Identity: "2:5"},
		Destination: agent.FlowEnd{Name: "shop/db", Address: "fd00:1::20", Port: 5432, Identity: "1:6", Namespace: "shop", Pod: "db"},
		Service:     "shop/db", Policies: []string{"NetworkPolicy shop/db"}}
}

// flowServer answers with a flow and says what it was asked.
func flowServer(asked *string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		*asked = r.URL.RawQuery
		json.NewEncoder(w).Encode(someFlow())
		io.WriteString(w, `{"apiVersion":"tombolo.io/v1","kind":"LostFlows","lost":7}`+"\n")
	}
}

func TestFlows(t *testing.T) {
	var asked string
	w := newWorld(t, map[string]any{"/v1/flows": flowServer(&asked)}, nil)
	text := w.at(t, "flows")
	golden(t, "text/flows.txt", text.out+"--- standard error\n"+text.errOut)
	if text.status != 0 || strings.ContainsFunc(text.out, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) {
		t.Errorf("status %d, %q", text.status, text.out)
	}
	doc := w.at(t, "flows", "-o", "json")
	lines := strings.Split(strings.TrimSpace(doc.out), "\n")
	var back agent.Flow
	if err := json.Unmarshal([]byte(lines[0]), &back); err != nil || len(lines) != 2 || back.Source.Name != "gcp/shop/"+nasty {
		t.Errorf("-o json: %v\n%s", err, doc.out)
	}
	if strings.ContainsFunc(doc.out, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) {
		t.Errorf("unescaped characters in JSON: %q", doc.out)
	}
	for _, c := range []struct{ line, query string }{
		{"flows", ""},
		{"flows --last 3 --dropped", "last=3&verdict=dropped"},
		{"flows --verdict cut --pod gcp/shop/web", "pod=gcp%2Fshop%2Fweb&verdict=cut"},
		{"flows --policy shop/db", "policy=shop%2Fdb"},
	} {
		if got := w.at(t, strings.Fields(c.line)...); got.status != 0 || asked != c.query {
			t.Errorf("%s: status %d, asked %q, want %q", c.line, got.status, asked, c.query)
		}
	}
	// Who follows is told when the agent goes away.
	if got := w.at(t, "flows", "--follow"); got.status != 1 || asked != "follow=1&last=0" || !strings.Contains(got.errOut, "the agent has stopped") || got.out != text.out {
		t.Errorf("--follow: %+v, asked %q", got, asked)
	}
	none := newWorld(t, map[string]any{"/v1/flows": http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}, nil)
	if got := none.at(t, "flows"); got != (answer{0, "", "no such flows were seen\n"}) {
		t.Errorf("nothing: %+v", got)
	}
	for line, says := range map[string]string{
		"flows --verdict maybe": "there are forwarded, dropped, cut", "flows --last -1": "want 0 or more", "flows --dropped --verdict cut": "[dropped verdict]", "flows x": "takes no arguments",
	} {
		if got := w.at(t, strings.Fields(line)...); got.status == 0 || !strings.Contains(got.errOut, says) {
			t.Errorf("%s: %+v", line, got)
		}
	}
}

// lineWriter hands every write on.
type lineWriter chan string

func (w lineWriter) Write(p []byte) (int, error) { w <- string(p); return len(p), nil }

// What comes is shown when it comes, and Ctrl-C is a good end.
func TestFlowsFollow(t *testing.T) {
	more := make(chan struct{})
	server := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		for {
			json.NewEncoder(w).Encode(someFlow())
			w.(http.Flusher).Flush()
			select {
			case <-more:
			case <-r.Context().Done():
				return
			}
		}
	})
	w := newWorld(t, map[string]any{"/v1/flows": server}, nil)
	ctx, interrupt := context.WithCancel(t.Context())
	out, status, errOut := make(lineWriter), make(chan int), &bytes.Buffer{}
	go func() {
		status <- run(ctx, environment{Args: []string{"flows", "--follow"}, Stdout: out, Stderr: errOut, Getenv: func(name string) string { return w.vars[name] }})
	}()
	for range 3 {
		if line := <-out; !strings.HasPrefix(line, "12:00:00.000 dropped ") || strings.Count(line, "\n") != 1 {
			t.Errorf("%q", line)
		}
		more <- struct{}{}
	}
	<-out
	interrupt()
	if got := <-status; got != 0 || errOut.Len() > 0 {
		t.Errorf("status %d: %s", got, errOut)
	}
}
