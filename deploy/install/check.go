package install

import (
	"context"
	"errors"
)

func (c *call) check(context.Context) error { return errors.New("not yet") }
