package clustermesh

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

const maxPortName = 63

// checker collects the first thing that is wrong with a message, so that
// decoding reads as a list of fields.
type checker struct{ err error }

func (c *checker) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf(format, args...)
	}
}

func (c *checker) check(err error) {
	if c.err == nil {
		c.err = err
	}
}

func (c *checker) text(what, s string, most int) {
	if len(s) > most {
		c.fail("%s has %d bytes; at most %d are allowed", what, len(s), most)
	} else if !utf8.ValidString(s) {
		c.fail("%s %s is not UTF-8", what, quote(s))
	}
}

func (c *checker) count(what string, n, most int) {
	if n > most {
		c.fail("%d %s; at most %d are allowed", n, what, most)
	}
}

// port reads a number of 16 bits that is at least least.
func (c *checker) port(what string, n uint32, least uint32) uint16 {
	if n > 1<<16-1 || n < least {
		c.fail("%s %d is not in %d–65535", what, n, least)
	}
	return uint16(n)
}

func (c *checker) protocol(p pb.Protocol) Protocol {
	switch p {
	case pb.Protocol_TCP, pb.Protocol_UDP, pb.Protocol_SCTP:
	default:
		c.fail("unknown protocol %d; known are TCP 6, UDP 17, SCTP 132", p)
	}
	return Protocol(p)
}

func (c *checker) clusterID(id uint32) ID {
	c.check(validateClusterID(id))
	return ID(id)
}

func validateClusterID(id uint32) error {
	if id < 1 || id > uint32(MaxID) {
		return fmt.Errorf("cluster ID %d is not in 1–%d", id, MaxID)
	}
	return nil
}

// addr reads 4 or 16 bytes. A v4-mapped address is refused: IPv4 has one
// spelling, of 4 bytes.
func (c *checker) addr(what string, b []byte) netip.Addr {
	a, ok := netip.AddrFromSlice(b)
	switch {
	case !ok:
		c.fail("%s: an address of %d bytes; it should have 4 or 16", what, len(b))
	case a.Is4In6():
		c.fail("%s: %v is IPv4 in 16 bytes; it should have 4", what, a)
	}
	return a
}

func (c *checker) addrs(what string, list [][]byte) []netip.Addr {
	if c.count(what, len(list), maxAddrs); len(list) == 0 || c.err != nil {
		return nil
	}
	out := make([]netip.Addr, len(list))
	for i, b := range list {
		out[i] = c.addr(what, b)
	}
	return out
}

func (c *checker) names(what string, list []string, in *interner) []string {
	if c.count(what, len(list), maxNames); len(list) == 0 || c.err != nil {
		return nil
	}
	out := make([]string, len(list))
	for i, s := range list {
		c.text(what, s, maxText)
		out[i] = in.string(s)
	}
	return out
}

// seconds, like every method of checker, notes the first error and goes on.
func (c *checker) seconds(what string, s uint32) time.Duration {
	if s > maxSeconds {
		c.fail("%s of %d seconds is above %d", what, s, maxSeconds)
	}
	return time.Duration(s) * time.Second
}

func (c *checker) prefixes(what string, list []*pb.Prefix) []netip.Prefix {
	if c.count(what, len(list), MaxPrefixes); len(list) == 0 || c.err != nil {
		return nil
	}
	out := make([]netip.Prefix, len(list))
	for i, p := range list {
		a := c.addr("prefix", p.Address)
		if int64(p.Bits) > int64(a.BitLen()) {
			c.fail("prefix length %d of an address of %d bits", p.Bits, a.BitLen())
			return nil
		}
		out[i] = netip.PrefixFrom(a, int(p.Bits))
		if c.err == nil && out[i].Masked() != out[i] {
			c.fail("prefix %v has bits set beyond its length; it should be %v", out[i], out[i].Masked())
		}
	}
	return out
}

// outside is nil where there is nothing: a nil and an empty one would be told apart.
func (c *checker) outside(m *pb.Service) *Outside {
	if len(m.External)+len(m.SourceRanges) == 0 {
		return nil
	}
	return &Outside{Addresses: c.external(m.External), SourceRanges: c.prefixes("source ranges", m.SourceRanges)}
}

// export copies what it takes: the message aliases a receive buffer.
func (c *checker) export(m *pb.Service, in *interner) *Export {
	if m.Export == nil {
		return nil
	}
	e := m.Export
	c.text("traffic distribution", e.TrafficDistribution, maxText)
	if len(e.AppProtocols) > len(m.Ports) {
		c.fail("%d app protocols of %d ports", len(e.AppProtocols), len(m.Ports))
	}
	out := &Export{
		Created: Origin(e.Created), IPv4: e.Ipv4, IPv6: e.Ipv6, TrafficDistribution: in.string(e.TrafficDistribution),
		Labels: c.labels("exported labels", e.Labels, maxText, in), Annotations: c.labels("exported annotations", e.Annotations, maxAnnotation, in),
	}
	for _, p := range e.AppProtocols {
		c.text("app protocol", p, maxText)
		out.AppProtocols = append(out.AppProtocols, in.string(p))
	}
	return out
}

// labels reads a list that is sorted by key, each key once.
func (c *checker) labels(what string, list []*pb.Label, most int, in *interner) []Label {
	if c.count(what, len(list), maxLabels); len(list) == 0 || c.err != nil {
		return nil
	}
	out := make([]Label, len(list))
	for i, l := range list {
		c.text(what, l.Key, maxText)
		c.text(what, l.Value, most)
		if l.Key == "" || i > 0 && l.Key <= list[i-1].Key {
			c.fail("%s are not sorted by key, each once: %s", what, quote(l.Key))
		}
		out[i] = Label{Key: in.string(l.Key), Value: in.unique(l.Value)}
	}
	return out
}

func (c *checker) distribution(d pb.Distribution) Distribution {
	if d < 0 || d > 255 {
		c.fail("distribution %d", d)
	}
	return Distribution(d)
}

func (c *checker) external(list []*pb.External) []External {
	if c.count("external addresses", len(list), MaxPrefixes); len(list) == 0 || c.err != nil {
		return nil
	}
	out := make([]External, len(list))
	for i, e := range list {
		out[i] = External{Address: c.addr("external address", e.Address), Kind: ExternalKind(e.Kind)}
		if e.Kind < 1 || e.Kind > 255 { // kinds of newer versions are kept
			c.fail("external address of kind %d", e.Kind)
		}
	}
	return out
}

func (c *checker) hostPorts(list []*pb.HostPort) []HostPort {
	if c.count("host ports", len(list), maxPorts); len(list) == 0 || c.err != nil {
		return nil
	}
	out := make([]HostPort, len(list))
	for i, p := range list {
		out[i] = HostPort{Protocol: c.protocol(p.Protocol), Port: c.port("host port", p.Port, 1), ContainerPort: c.port("container port", p.ContainerPort, 1)}
		if len(p.Address) > 0 {
			out[i].Address = c.addr("host address", p.Address)
		}
	}
	return out
}

// cutName splits at the first slash of a name that has been validated.
func cutName(s string) (first, rest string) {
	first, rest, _ = strings.Cut(s, "/")
	return first, rest
}
