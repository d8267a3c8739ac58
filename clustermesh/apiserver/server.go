package apiserver

import (
	"context"
	"errors"
)

var errNotWired = errors.New("the mesh API server is not wired yet")

// Run is the mesh API server: it reads the source, publishes records, serves the
// mesh port and the admin socket, until ctx ends; then it stops in order and
// returns nil. An error says what to do about it.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	s := &server{cfg: cfg}
	return s.run(ctx)
}

type server struct{ cfg Config }

func (s *server) run(context.Context) error { return errNotWired }
