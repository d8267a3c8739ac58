package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
)

// LostFlows stands in the place of flows that a follower was too slow for.
type LostFlows struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"` // LostFlows
	Lost       uint64 `json:"lost"`
}

// serveFlows writes flows as JSON lines: the last ones, and with follow those that
// come, until the client leaves.
func (a *Agent) serveFlows(w http.ResponseWriter, r *http.Request) {
	last, follow, filter, err := flowQuery(r)
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	flows, follower := a.flows.last(last, filter, follow)
	if follower != nil {
		defer a.flows.leave(follower)
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	flush := http.NewResponseController(w).Flush
	out := json.NewEncoder(w)
	for lost := uint64(0); ; {
		for i := range flows {
			if out.Encode(&flows[i]) != nil {
				return // the client is gone
			}
		}
		if lost > 0 && out.Encode(LostFlows{APIVersion, "LostFlows", lost}) != nil {
			return
		}
		if flush() != nil || follower == nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-follower.ready:
		}
		flows, lost = a.flows.take(follower)
	}
}

func flowQuery(r *http.Request) (last int, follow bool, filter FlowFilter, err error) {
	q := r.URL.Query()
	last = flowsKept
	if text := q.Get("last"); text != "" {
		if last, err = strconv.Atoi(text); err != nil || last < 0 {
			return 0, false, filter, fmt.Errorf("last=%s: want how many of the last flows, at most %d are kept", text, flowsKept)
		}
	}
	filter = FlowFilter{Verdict: FlowVerdict(q.Get("verdict")), Pod: q.Get("pod"), Policy: q.Get("policy")}
	switch filter.Verdict {
	case "", FlowForwarded, FlowDropped, FlowCut:
	default:
		return 0, false, filter, errors.New("verdict: want forwarded, dropped or cut")
	}
	return last, q.Get("follow") == "1" || q.Get("follow") == "true", filter, nil
}
