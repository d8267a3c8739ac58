package apiserver

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// Refusal is an answer of no, to a caller who can do something about it: what
// was refused, why, and what to change. It travels as a gRPC status with a
// pb.Problem in its details.
type Refusal struct {
	Code           codes.Code // zero reads as FailedPrecondition
	What, Why, Fix string
}

// Error is one line: what: why; fix.
func (r *Refusal) Error() string {
	s := r.What
	if r.Why != "" {
		s += ": " + r.Why
	}
	if r.Fix != "" {
		s += "; " + r.Fix
	}
	return s
}

// GRPCStatus makes a gRPC server send r with its parts kept apart.
func (r *Refusal) GRPCStatus() *status.Status {
	code := r.Code
	if code == codes.OK {
		code = codes.FailedPrecondition
	}
	st := status.New(code, r.Error())
	if with, err := st.WithDetails(&pb.Problem{What: r.What, Why: r.Why, Fix: r.Fix}); err == nil {
		return with
	}
	return st
}

// Refuse makes a Refusal; why is a format with its arguments, and may be empty.
func Refuse(code codes.Code, what, fix, why string, args ...any) *Refusal {
	return &Refusal{Code: code, What: what, Fix: fix, Why: fmt.Sprintf(why, args...)}
}

// AsRefusal finds the Refusal in err, also one that came over gRPC (its words
// are foreign and made safe to print); nil if err is of another kind.
func AsRefusal(err error) *Refusal {
	var r *Refusal
	if errors.As(err, &r) {
		return r
	}
	st, ok := status.FromError(err)
	if !ok || st.Code() == codes.OK {
		return nil
	}
	for _, d := range st.Details() {
		if p, ok := d.(*pb.Problem); ok {
			return &Refusal{Code: st.Code(), What: printable(p.What), Why: printable(p.Why), Fix: printable(p.Fix)}
		}
	}
	return nil
}
