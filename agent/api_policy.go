package agent

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/tombolo-mesh/tombolo/agent/policy"
	"github.com/tombolo-mesh/tombolo/agent/policy/trace"
)

const (
	maxQuestions = 8 << 20 // bytes of a body
	turnTraces   = 256     // answered in one turn of the owner goroutine
)

// servePolicies lists policies, with how many pods of this node they select.
func (a *Agent) servePolicies(w http.ResponseWriter, r *http.Request) {
	var list []policy.Summary
	if a.asked(w, r, func() { list = a.state.policy.engine.Policies() }) {
		answer(w, http.StatusOK, trace.List(list))
	}
}

// serveTrace answers one question, or with batch=1 one in each line.
func (a *Agent) serveTrace(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxQuestions))
	if err != nil {
		refuse(w, http.StatusBadRequest, fmt.Errorf("questions: %w", err))
		return
	}
	if r.URL.Query().Get("batch") == "1" {
		a.serveTraces(w, r, body)
		return
	}
	q, err := trace.ParseQuestion(body)
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	var t *trace.Answer
	if !a.asked(w, r, func() { t, err = trace.Trace(a.state.policyWorld([]trace.Question{q}), q) }) {
		return
	}
	if err != nil {
		refuse(w, http.StatusNotFound, err)
		return
	}
	answer(w, http.StatusOK, t)
}

func (a *Agent) serveTraces(w http.ResponseWriter, r *http.Request, body []byte) {
	var questions []trace.Question
	var briefs []trace.Brief
	for line := range bytes.Lines(body) {
		q, err := trace.ParseQuestion(line)
		b := trace.Brief{ID: q.ID}
		if err != nil {
			b.Error = err.Error()
		}
		questions, briefs = append(questions, q), append(briefs, b)
	}
	for from := 0; from < len(questions); from += turnTraces {
		part := questions[from:min(from+turnTraces, len(questions))]
		if !a.asked(w, r, func() {
			world := a.state.policyWorld(part)
			for i, q := range part {
				if b := &briefs[from+i]; b.Error == "" {
					*b = trace.Quick(world, q)
				}
			}
		}) {
			return
		}
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := json.NewEncoder(w)
	for i := range briefs {
		if out.Encode(&briefs[i]) != nil {
			return // the client is gone
		}
	}
}
