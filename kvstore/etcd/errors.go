package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// storeError is an answer of a store: a sentinel of kvstore (nil if none fits)
// with what was asked, where, and the words of the server.
type storeError struct {
	where string // endpoints
	what  string // "list /a/ at 7"
	kind  error  // one of kvstore.Err…, or nil
	cause error
}

func (e *storeError) Error() string {
	msg := printable(describe(e.cause))
	if e.kind == nil || strings.Contains(msg, e.kind.Error()) {
		return fmt.Sprintf("etcd %s: %s: %s", e.where, e.what, msg)
	}
	return fmt.Sprintf("etcd %s: %s: %v: %s", e.where, e.what, e.kind, msg)
}

func (e *storeError) Unwrap() []error {
	if e.kind == nil {
		return []error{e.cause}
	}
	return []error{e.kind, e.cause}
}

// fail turns err into what the contract of kvstore.Store promises. A context
// that ended is reported as such, whatever the transport called it.
func (s *Store) fail(ctx context.Context, what string, err error) error {
	if err == nil {
		return nil
	}
	if cerr := ctx.Err(); cerr != nil {
		return fmt.Errorf("etcd %s: %s: %w", s.where, what, cerr)
	}
	return &storeError{where: s.where, what: what, kind: kindOf(err), cause: err}
}

// kindOf finds the kvstore error that err means, or nil.
func kindOf(err error) error {
	for _, k := range []error{kvstore.ErrCompacted, kvstore.ErrFutureRevision, kvstore.ErrOtherStore, kvstore.ErrDenied} {
		if errors.Is(err, k) {
			return k
		}
	}
	code, text := codeOf(err)
	switch code {
	case codes.OutOfRange:
		return revisionKind(text)
	case codes.NotFound:
		if strings.Contains(text, "lease not found") {
			return kvstore.ErrLeaseNotFound
		}
	case codes.PermissionDenied, codes.Unauthenticated:
		return kvstore.ErrDenied
	case codes.InvalidArgument:
		if strings.Contains(text, "too large") || strings.Contains(text, "too many operations") {
			return kvstore.ErrTooLarge
		}
	}
	return nil
}

// revisionKind reads the two complaints about a revision, which reach a reader
// as a status or as the reason of a cancelled watch.
func revisionKind(text string) error {
	switch {
	case strings.Contains(text, "has been compacted"):
		return kvstore.ErrCompacted
	case strings.Contains(text, "future revision"):
		return kvstore.ErrFutureRevision
	}
	return nil
}

// codeOf reads the gRPC code and message of err; an etcd server in the process
// answers with etcd's own error type instead.
func codeOf(err error) (codes.Code, string) {
	var e rpctypes.EtcdError
	if errors.As(err, &e) {
		return e.Code(), e.Error()
	}
	st, ok := status.FromError(err)
	if !ok {
		return codes.Unknown, err.Error()
	}
	return st.Code(), st.Message()
}

// describe is the message of a status without gRPC's "rpc error: code = …".
func describe(err error) string {
	if st, ok := status.FromError(err); ok && st.Code() != codes.Unknown {
		text := st.Message()
		if st.Code() == codes.Unavailable || text == "" {
			text = fmt.Sprintf("%s (%s)", text, st.Code())
		}
		return text
	}
	return err.Error()
}

// printable escapes control characters: the other side chose these words, and
// they end on terminals.
func printable(text string) string {
	clean := func(r rune) bool { return r < 0x20 || r >= 0x7f && r < 0xa0 }
	if strings.IndexFunc(text, clean) < 0 {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if clean(r) {
			fmt.Fprintf(&b, "\\x%02x", r)
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}
