package register

import (
	"errors"
	"log/slog"
	"testing"
)

// A node that cannot register for a day says so a few times, and again when the
// reason changes.
func TestSameFailureIsLoggedAFewTimes(t *testing.T) {
	var f sameFailure
	heard := 0
	for i := range 5760 {
		err := errors.New("connection refused")
		if i == 4000 {
			err = errors.New("the token expired")
		}
		if f.level(err) == slog.LevelWarn {
			heard++
		}
	}
	if heard != 3+1+3 {
		t.Errorf("%d lines heard", heard)
	}
}
