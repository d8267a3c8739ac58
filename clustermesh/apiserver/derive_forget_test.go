package apiserver

import (
	"fmt"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// A replica that does not lead flushes nothing: pods that come and go must not
// pile up there. What has just changed keeps its origin, should it lead soon.
func TestFollowerForgets(t *testing.T) {
	r := newDeriveRig()
	for i := range 100 {
		r.d.touch(podUnit(objectName{"shop", fmt.Sprint(i)}), clustermesh.OriginAt(time.Now().Add(-time.Hour)))
	}
	web, at := serviceUnit(objectName{"shop", "web"}), clustermesh.OriginAt(time.Now())
	r.d.touch(web, at)
	c := &core{d: r.d}
	c.collect(t.Context())
	if len(r.d.dirty) != 1 || r.d.dirty[web] != at {
		t.Errorf("left: %v", r.d.dirty)
	}
}
