package register

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ErrUnreachable: no mesh API server answered.
var ErrUnreachable = errors.New("mesh API server cannot be reached")

// ErrUntrusted: a server answered that is not the cluster's. Nothing was sent to it.
var ErrUntrusted = errors.New("mesh API server is not trusted")

// explain says what a failed call means and what to do. Refusals by the server
// bring their own advice.
func explain(err error, address string) error {
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	text := st.Message()
	if i := strings.LastIndex(text, "authentication handshake failed: "); i >= 0 {
		why := strings.Trim(text[i+len("authentication handshake failed: "):], `"`)
		return fmt.Errorf("%w: %s: %s; nothing secret was sent. Check that the address belongs to the cluster, that the token is of this cluster's present CA, and that both clocks are right", ErrUntrusted, address, why)
	}
	switch st.Code() {
	case codes.Unavailable, codes.DeadlineExceeded:
		return fmt.Errorf("%w: %s: %s; check that it runs and that its TCP port is open from here", ErrUnreachable, address, text)
	}
	return fmt.Errorf("%s refused: %w", address, err)
}
