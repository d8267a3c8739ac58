package pod

import (
	"context"
	"errors"
	"io"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
)

// exec runs the target's command with stream as its standard input and output,
// until it ends: over a WebSocket, or over SPDY where the kube-apiserver or a
// proxy before it does not let that through.
func (c *Cluster) exec(ctx context.Context, t Target, stream io.ReadWriter, stderr io.Writer) error {
	req := c.client.Get().Namespace(c.cfg.Namespace).Resource("pods").Name(t.Pod).SubResource("exec").
		Param("container", t.Program.Container).Param("stdin", "true").Param("stdout", "true").Param("stderr", "true")
	for _, word := range t.Program.Command {
		req = req.Param("command", word)
	}
	streams := remotecommand.StreamOptions{Stdin: stream, Stdout: stream, Stderr: stderr}
	web, err := remotecommand.NewWebSocketExecutor(c.rest, http.MethodGet, req.URL().String())
	if err != nil {
		return err
	}
	err = web.StreamWithContext(ctx, streams)
	if !httpstream.IsUpgradeFailure(err) && !httpstream.IsHTTPSProxyError(err) {
		return err
	}
	// Nothing of stream was used up: there was no connection.
	spdy, spdyErr := remotecommand.NewSPDYExecutor(c.rest, http.MethodPost, req.URL())
	if spdyErr != nil {
		return errors.Join(err, spdyErr)
	}
	spdyErr = spdy.StreamWithContext(ctx, streams)
	if status := refusal(err); spdyErr != nil && status != nil {
		return status // says more than that SPDY failed too
	}
	return spdyErr
}

// refusal is the kube-apiserver's own no, as opposed to something in between that
// does not know WebSockets; nil if err is none. UpgradeFailureError has no Unwrap.
func refusal(err error) error {
	var up *httpstream.UpgradeFailureError
	if errors.As(err, &up) {
		err = up.Cause
	}
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return err
	}
	return nil
}
