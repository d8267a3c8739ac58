package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// deadline bounds one call: the kubelet gives a sandbox minutes, but a plugin
// that hangs tells nobody why.
const deadline = 30 * time.Second

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 1 << 20

func client(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
}

// call posts to the agent and reads the answer into out (nil = not wanted).
func call(socket, verb string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return failed(types.ErrInternal, "encode the request", "%v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
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
		return failed(types.ErrTryAgainLater, "the Tombolo agent cannot serve this yet", "%s", reason(answer))
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

// ready asks whether the agent is there and set up.
func ready(socket string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/readyz", nil)
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
		return failed(types.ErrPluginNotAvailable, "the Tombolo agent is not ready", "%s", reason(answer))
	}
	return nil
}

// unreachable tells an agent that is not there (yet) from one that is too slow.
func unreachable(socket string, err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return failed(types.ErrTryAgainLater, "the Tombolo agent is not running (or starting)", "socket %s: %v; look at its log, or set \"socket\" in the network configuration", socket, err)
	case errors.Is(err, os.ErrPermission):
		return failed(types.ErrInternal, "no access to the Tombolo agent", "socket %s: %v; the plugin must run as root", socket, err)
	case errors.Is(err, context.DeadlineExceeded):
		return failed(types.ErrTryAgainLater, "the Tombolo agent did not answer in time", "socket %s: nothing within %s", socket, deadline)
	}
	return failed(types.ErrTryAgainLater, "the Tombolo agent cannot be reached", "socket %s: %v", socket, err)
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
