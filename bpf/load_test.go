package bpf

import "testing"

func TestLoad(t *testing.T) {
	o, _ := load(t)
	c, err := o.Counters()
	if err != nil {
		t.Fatal(err)
	}
	t.Log(c, o.Features())
	o2, _ := load(t, func(o *Options) { o.NoRetval = true })
	t.Log(o2.Features())
}
