package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// getAgent reads a path of the agent's socket.
func (c *cli) getAgent(ctx context.Context, path string) ([]byte, error) {
	return c.callAgent(ctx, http.MethodGet, path, nil)
}

// callAgent sends a body, if there is one, and reads the answer.
func (c *cli) callAgent(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return c.ask(ctx, method, path, body)
}

func (c *cli) ask(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	res, err := c.open(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, fmt.Errorf("answer of the agent at %s broke off: %w", c.agentPlace(), err)
	}
	return answer, nil
}

// agentClient speaks to the agent's socket; its connection serves all calls of a
// command, as one through a pod takes a while to come about.
func (c *cli) agentClient() *http.Client {
	if c.toAgent == nil {
		c.toAgent = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			if c.viaPods() {
				return c.dialAgentPod(ctx)
			}
			return new(net.Dialer).DialContext(ctx, "unix", c.agent)
		}}
	}
	return &http.Client{Transport: c.toAgent}
}

// close ends what a command has left open.
func (c *cli) close() {
	if c.toAgent != nil {
		c.toAgent.CloseIdleConnections()
	}
}

// agentPlace is where the agent that is asked was looked for.
func (c *cli) agentPlace() string {
	if !c.viaPods() {
		return c.agent
	}
	return strings.TrimSpace("node " + orDefault(c.kube.node, "of the cluster"))
}

// open asks, and leaves the answer to be read. A refusal is an error.
func (c *cli) open(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	res, err := c.agentClient().Do(req)
	var wrapped *url.Error
	if c.viaPods() && errors.As(err, &wrapped) {
		return nil, wrapped.Err // has said all
	}
	if err != nil {
		return nil, socketError("agent", c.agent, "--agent-socket", err)
	}
	if res.StatusCode == http.StatusOK {
		return res, nil
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("answer of the agent at %s broke off: %w", c.agentPlace(), err)
	}
	return nil, errors.New(agentError(text, res.Status))
}

// agentError is the agent's own words for what went wrong.
func agentError(body []byte, status string) string {
	var e struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(body, &e) == nil && e.Error != "" {
		return e.Error
	}
	return orDefault(strings.TrimSpace(string(body)), status)
}

// admin connects to the mesh API server's admin socket.
func (c *cli) admin(ctx context.Context) (pb.AdminClient, func(), error) {
	if c.viaPods() {
		return c.adminPod(ctx)
	}
	// A missing socket is found out here, not after gRPC has retried.
	probe, err := net.DialTimeout("unix", c.apiserver, 2*time.Second)
	if err != nil {
		return nil, nil, socketError("mesh API server", c.apiserver, "--apiserver-socket", err)
	}
	probe.Close()
	conn, err := grpc.NewClient("unix:"+c.apiserver, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	return pb.NewAdminClient(conn), func() { conn.Close() }, nil
}

// socketError says what to do about a socket that does not answer.
func socketError(who, path, flag string, err error) error {
	what := fmt.Sprintf("cannot reach the %s at %s", who, path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: there is no such socket\nfix: start the %s on this machine, or name its socket with %s", what, who, flag)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%s: nobody listens there, it is left over from a process that died\nfix: start the %s again, or name another socket with %s", what, who, flag)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: permission denied\nfix: run this as root", what)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// rpcError turns a refusal into what, why and what to do.
func rpcError(err error) error {
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	for _, detail := range s.Details() {
		if p, ok := detail.(*pb.Problem); ok {
			text := p.What
			if p.Why != "" {
				text += "\ncause: " + p.Why
			}
			if p.Fix != "" {
				text += "\nfix: " + p.Fix
			}
			return errors.New(text)
		}
	}
	if s.Code() == codes.Unavailable {
		return fmt.Errorf("the mesh API server does not answer: %s", s.Message())
	}
	return errors.New(s.Message())
}
