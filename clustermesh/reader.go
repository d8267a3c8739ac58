package clustermesh

import (
	"log/slog"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// Change is one upsert or delete.
type Change struct {
	Key    Key
	Record Record // nil = delete
}

// Update is what a Reader tells the owner of the views.
type Update struct {
	Cluster     string
	Scope       Scope
	View        *View    // non-nil: a whole new view; ownership passes
	Changes     []Change // otherwise: changes of the present one
	Incarnation uint64
	Position    kvstore.Position
	Lost        error // non-nil: no connection at present; nothing else is set
	Refused     []Refusal
}

// Into brings the owner's view up to date and returns the one to keep.
func (u Update) Into(old *View) (*View, []Refusal) { return old, nil }

// Diff are the changes that turn old into fresh; either may be nil.
func Diff(old, fresh *View) []Change { return nil }

// Affected are the services whose merge a change may alter.
func Affected(c Change) (ServiceName, bool) { return ServiceName{}, false }

// ReaderConfig makes a Reader.
type ReaderConfig struct {
	Admission Admission
	Scope     Scope
	Out       func(Update)
	Log       *slog.Logger
}

// Reader is a kvstore.Sink.
type Reader struct{ cfg ReaderConfig }

// NewReader makes a Reader.
func NewReader(cfg ReaderConfig) *Reader { return &Reader{cfg} }

func (r *Reader) Complete(marker []byte) error                            { return nil }
func (r *Reader) Prefix() string                                          { return "" }
func (r *Reader) Marker() string                                          { return "" }
func (r *Reader) Begin(at kvstore.Position, marker []byte) error          { return nil }
func (r *Reader) Apply(at kvstore.Position, events []kvstore.Event) error { return nil }
func (r *Reader) Synced(at kvstore.Position)                              {}
func (r *Reader) Lost(err error)                                          {}
