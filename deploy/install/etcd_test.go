package install

import (
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/tombolo-mesh/tombolo/deploy/charttest"
)

// A member of etcd listens at URLs that etcd takes, and announces itself by one that
// the others have for it, by IPv4 and by IPv6.
func TestMembersStart(t *testing.T) {
	for file, address := range map[string]string{"ha.yaml": "10.0.0.2", "ha6.yaml": "fd00::2"} {
		seen := false
		for _, s := range charttest.Starts(t, "testdata", "etcd", charttest.Fields{"spec.nodeName": "n2", "status.hostIP": address}) {
			if !strings.HasPrefix(s.Where, file+" ") {
				continue
			}
			seen = true
			flags := make(map[string]string)
			for _, arg := range s.Args {
				name, value, _ := strings.Cut(arg, "=")
				flags[name] = value
			}
			for _, name := range []string{"--listen-client-urls", "--advertise-client-urls", "--listen-peer-urls", "--initial-advertise-peer-urls"} {
				u, err := url.Parse(flags[name])
				if err != nil {
					t.Errorf("%s: %s: %v", s.Where, name, err)
					continue
				}
				if at, err := netip.ParseAddrPort(u.Host); err != nil || at.Addr().String() != address || u.Scheme != "https" {
					t.Errorf("%s: %s is %s %v, want https at %s", s.Where, name, u, err, address)
				}
			}
			if me := "n2=" + flags["--initial-advertise-peer-urls"]; flags["--name"] != "n2" || !slices.Contains(strings.Split(flags["--initial-cluster"], ","), me) {
				t.Errorf("%s: %s is not among %s", s.Where, me, flags["--initial-cluster"])
			}
		}
		if !seen {
			t.Errorf("%s starts no etcd", file)
		}
	}
}
