package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/tombolo-mesh/tombolo/agent/policy/trace"
)

const oneQuestion = `{"id":%d,"from":"shop/web","to":"shop/db","port":5432}` + "\n"

// Answers come in the order of the questions, one for each line; a bad line is
// answered, too.
func TestPolicyBatch(t *testing.T) {
	var in strings.Builder
	const n = 3000
	for i := range n {
		switch {
		case i == 1000:
			fmt.Fprintf(&in, `{"id":%d,"from":%q,"to":"shop/db","port":1}`+"\n", i, strings.Repeat("x", 100<<10))
		case i%3 == 0:
			fmt.Fprintf(&in, `{"id":%d,"from":"shop/wbe","to":"shop/db","port":5432}`+"\n\n", i)
		default:
			fmt.Fprintf(&in, oneQuestion, i)
		}
	}
	got := atInput(t, nil, strings.NewReader(strings.TrimSuffix(in.String(), "\n")), "policy", "trace", "-f", "testdata/policy", "--batch")
	if got.status != 0 || got.errOut != "1001 of 3000 questions could not be answered\n" {
		t.Errorf("status %d: %s", got.status, got.errOut)
	}
	i := 0
	for line := range strings.Lines(got.out) {
		var b trace.Brief
		if err := json.Unmarshal([]byte(line), &b); err != nil {
			t.Fatal(err)
		}
		want := trace.Brief{ID: json.RawMessage(fmt.Sprint(i)), Verdict: trace.Denied}
		switch {
		case i == 1000:
			want = trace.Brief{Error: "the line is too long for a question"}
		case i%3 == 0:
			want.Verdict, want.Error = "", "no manifest has a pod shop/wbe; there are shop/api, shop/db, shop/web"
		}
		if string(b.ID) != string(want.ID) || b.Verdict != want.Verdict || b.Error != want.Error {
			t.Fatalf("line %d: %s", i, line)
		}
		i++
	}
	if i != n {
		t.Errorf("%d answers to %d questions", i, n)
	}
}

func TestPolicyExitCode(t *testing.T) {
	for _, c := range []struct {
		line   string
		status int
	}{
		{"policy trace -f testdata/policy shop/web shop/db 5432", 0},
		{"policy trace -f testdata/policy shop/web shop/db 5432 --exit-code", 1},
		{"policy trace -f testdata/policy shop/api shop/db 5432 --exit-code", 0},
		{"policy trace -f testdata/policy shop/wbe shop/db 5432", 1},
		{"policy trace -f testdata/none shop/web shop/db 5432", 1},
		{"policy trace -f a=testdata/policy -f b=testdata/policy b/shop/api a/shop/db 5432 --exit-code", 1},
		{"policy trace -f a=testdata/policy -f b=testdata/policy b/shop/api a/shop/db 5432 --exit-code --policy-clusters all", 0},
	} {
		if got := at(t, nil, strings.Fields(c.line)...); got.status != c.status {
			t.Errorf("%s: status %d, want %d\n%s%s", c.line, got.status, c.status, got.out, got.errOut)
		}
	}
	for in, status := range map[string]int{`{"from":"shop/api","to":"shop/db","port":5432}`: 0, fmt.Sprintf(oneQuestion, 1): 1, "x\n": 1, "": 0} {
		if got := atInput(t, nil, strings.NewReader(in), "policy", "trace", "-f", "testdata/policy", "--batch", "--exit-code"); got.status != status {
			t.Errorf("%q: status %d, want %d", in, got.status, status)
		}
	}
}

// Somebody may wait for each answer before he asks on.
func TestPolicyBatchDialogue(t *testing.T) {
	in, ask := io.Pipe()
	answers, out := io.Pipe()
	status := make(chan int)
	go func() {
		status <- run(t.Context(), environment{Args: strings.Fields("policy trace -f testdata/policy --batch"), Stdin: in, Stdout: out, Stderr: io.Discard, Getenv: func(string) string { return "" }})
	}()
	read := bufio.NewReader(answers)
	for i := range 5 {
		fmt.Fprintf(ask, oneQuestion, i)
		line, err := read.ReadString('\n')
		if err != nil || !strings.HasPrefix(line, fmt.Sprintf(`{"id":%d,"verdict":"denied"`, i)) {
			t.Fatalf("%v: %s", err, line)
		}
	}
	ask.Close()
	if got := <-status; got != 0 {
		t.Errorf("status %d", got)
	}
}

// An agent is asked many lines at once, and its answers are passed on.
func TestPolicyBatchLive(t *testing.T) {
	calls := 0
	agent := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls++
		body, _ := io.ReadAll(r.Body)
		for line := range strings.Lines(string(body)) {
			var q trace.Question
			if err := json.Unmarshal([]byte(line), &q); err != nil {
				json.NewEncoder(w).Encode(trace.Brief{Error: "bad"})
				continue
			}
			json.NewEncoder(w).Encode(trace.Brief{ID: q.ID, Verdict: trace.Allowed})
		}
	})
	w := newWorld(t, map[string]any{"/v1/policy/trace": agent}, nil)
	var in, want strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&in, oneQuestion, i)
		fmt.Fprintf(&want, `{"id":%d,"verdict":"allowed"}`+"\n", i)
	}
	in.WriteString("nonsense\n")
	want.WriteString(`{"error":"bad"}` + "\n")
	got := atInput(t, w.vars, strings.NewReader(in.String()), "policy", "trace", "--batch")
	if got.status != 0 || got.out != want.String() || calls > 10 {
		t.Errorf("status %d, %d calls: %s", got.status, calls, got.errOut)
	}
	short := newWorld(t, map[string]any{"/v1/policy/trace": ""}, nil)
	if got := atInput(t, short.vars, strings.NewReader(in.String()), "policy", "trace", "--batch"); got.status != 1 || !strings.Contains(got.errOut, "the agent gave 0 answers to") {
		t.Errorf("an agent that says nothing: %+v", got)
	}
	nobody := newWorld(t, nil, nil)
	if got := atInput(t, nobody.vars, strings.NewReader(in.String()), "policy", "trace", "--batch"); got.status != 1 || !strings.Contains(got.errOut, "cannot reach the agent") {
		t.Errorf("no agent: %+v", got)
	}
}

// The whole way, from lines to lines.
func BenchmarkPolicyBatch(b *testing.B) {
	line := `{"id":1,"from":"shop/web","to":"shop/db","port":5432,"protocol":"tcp"}` + "\n"
	status := run(b.Context(), environment{Args: strings.Fields("policy trace -f testdata/policy --batch"), Stdin: strings.NewReader(strings.Repeat(line, b.N)),
		Stdout: io.Discard, Stderr: io.Discard, Getenv: func(string) string { return "" }})
	if status != 0 {
		b.Fatal(status)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "questions/s")
}
