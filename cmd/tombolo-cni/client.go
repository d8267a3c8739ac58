package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// Of one request. The kubelet gives a sandbox minutes, but a plugin that hangs
// tells nobody why.
const (
	callTimeout  = 30 * time.Second
	readyTimeout = 5 * time.Second
)

// ADD asks an agent that is away again after againFirst, then less often.
const (
	againFirst = 100 * time.Millisecond
	againMost  = time.Second
)

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 1 << 20

// errAway is in every error that says no more than that the agent is not there,
// or not yet.
type errAway struct{ error }

func (e errAway) Unwrap() error { return e.error }

func away(what, details string, args ...any) error {
	return errAway{failed(types.ErrTryAgainLater, what, details, args...)}
}

func isAway(err error) bool { return errors.As(err, &errAway{}) }

// bare is an error as CNI prints it.
func bare(err error) error {
	if a := (errAway{}); errors.As(err, &a) {
		return a.error
	}
	return err
}

func client(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
}

// call posts to the agent and reads the answer into out (nil = not wanted).
func call(ctx context.Context, socket, verb string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return failed(types.ErrInternal, "encode the request", "%v", err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent/v1/pods/"+verb, bytes.NewReader(body))
	if err != nil {
		return failed(types.ErrInternal, "make the request", "%v", err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client(socket).Do(req)
	if err != nil {
		return unreachable(socket, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return unreachable(socket, err)
	}
	switch {
	case resp.StatusCode == http.StatusServiceUnavailable:
		return away("the Tombolo agent cannot serve this yet", "%s", reason(answer))
	case resp.StatusCode/100 != 2:
		return failed(types.ErrInternal, "the Tombolo agent could not "+verb+" the pod", "%s", reason(answer))
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return failed(types.ErrDecodingFailure, "the Tombolo agent's answer cannot be read: are plugin and agent of one version?", "%v", err)
	}
	return nil
}

// insist is call, again and again while the agent is away, for as long as wait. The
// error at the end is the last reason that was heard.
func insist(wait time.Duration, socket, verb string, in, out any) error {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	var last error
	for pause := againFirst; ; pause = min(2*pause, againMost) {
		err := call(ctx, socket, verb, in, out)
		if err == nil || !isAway(err) {
			return err
		}
		if last == nil || ctx.Err() == nil {
			last = err // what the end of our own patience looks like says less
		}
		select {
		case <-ctx.Done():
			e := new(types.Error)
			if errors.As(last, &e) {
				return failed(e.Code, e.Msg, "%s (asked for %s; the runtime will try again)", e.Details, wait)
			}
			return last
		case <-time.After(pause):
		}
	}
}

// ready asks whether the agent could add a pod now.
func ready(socket string) error {
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/v1/pods/ready", nil)
	if err != nil {
		return failed(types.ErrInternal, "make the request", "%v", err)
	}
	resp, err := client(socket).Do(req)
	if err != nil {
		return failed(types.ErrPluginNotAvailable, "the Tombolo agent does not answer", "%s: %v", socket, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		answer, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		return failed(types.ErrPluginNotAvailable, "the Tombolo agent cannot connect pods yet", "%s", reason(answer))
	}
	return nil
}

// unreachable tells an agent that is not there (yet) from one that is too slow.
func unreachable(socket string, err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return away("the Tombolo agent is not running (or starting)", "socket %s: %v; look at its log, or set \"socket\" in the network configuration", socket, err)
	case errors.Is(err, os.ErrPermission):
		return failed(types.ErrInternal, "no access to the Tombolo agent", "socket %s: %v; the plugin must run as root", socket, err)
	case errors.Is(err, context.DeadlineExceeded):
		return away("the Tombolo agent did not answer in time", "socket %s: %v", socket, err)
	}
	return away("the Tombolo agent cannot be reached", "socket %s: %v", socket, err)
}

// reason is the text of an answer: the field "error" if it is JSON, else all of
// it; control characters become spaces, as it ends up on terminals.
func reason(answer []byte) string {
	text := string(answer)
	var e struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(answer, &e) == nil && e.Error != "" {
		text = e.Error
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.TrimSpace(text))
}

func failed(code uint, what, details string, args ...any) error {
	return types.NewError(code, what, fmt.Sprintf(details, args...))
}
