package main

import (
	"slices"
	"strings"
	"testing"
)

func TestAdvertised(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"mesh.aws.example:9443", "mesh.aws.example:9443"},
		{"172.30.1.2", "172.30.1.2:9443"},
		{"172.30.1.2,fd30:1::2", "172.30.1.2:9443,[fd30:1::2]:9443"}, // both of a node
		{"[172.30.1.2]:9443", "172.30.1.2:9443"},
		{"[172.30.1.2]:9443,172.30.1.2:9443,172.30.1.2", "172.30.1.2:9443"},
		{"[::ffff:172.30.1.2]:443", "172.30.1.2:443"},
		{"[FD30:1:0::2]:9443", "[fd30:1::2]:9443"},
		{"lb.example:443,172.30.1.2", "lb.example:443,172.30.1.2:9443"}, // in order of preference
	} {
		var in, want []string
		if c.in != "" {
			in, want = strings.Split(c.in, ","), strings.Split(c.want, ",")
		}
		got, err := advertised(in, ":9443")
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v %v, want %v", c.in, got, err, want)
		}
	}
	for _, bad := range []string{"mesh.aws.example", "1.2.3.4.5", "fd00::1:::", " "} {
		if got, err := advertised([]string{bad}, ":9443"); err == nil {
			t.Errorf("%q is taken as %v", bad, got)
		}
	}
}
