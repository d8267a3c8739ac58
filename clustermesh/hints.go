package clustermesh

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unique"
)

// maxHints bounds each list of an endpoint's hints, as Kubernetes does.
const maxHints = 8

// Hints say whose clients an endpoint is meant for: those of some zones, those
// of some nodes. None is the zero value. They are comparable and take one word:
// many endpoints have the same ones, most have none.
type Hints struct{ h unique.Handle[string] } // zones by comma, a semicolon, node numbers by comma; all sorted

// MakeHints puts hints together; the order does not count. Zones are label
// values, nodes are node numbers of the endpoint's cluster.
func MakeHints(zones []string, nodes []uint16) Hints {
	if len(zones)+len(nodes) == 0 {
		return Hints{}
	}
	zones = slices.Compact(slices.Sorted(slices.Values(zones)))
	var b strings.Builder
	b.WriteString(strings.Join(zones, ","))
	b.WriteByte(';')
	for i, n := range slices.Compact(slices.Sorted(slices.Values(nodes))) {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(int(n)))
	}
	return Hints{unique.Make(b.String())}
}

// text is what MakeHints wrote, "" without hints.
func (h Hints) text() string {
	if h.IsZero() {
		return ""
	}
	return h.h.Value()
}

// String is >zone:eu-1a>node:7, "" without hints.
func (h Hints) String() string {
	s := ""
	for _, z := range h.Zones() {
		s += ">zone:" + escape(z)
	}
	for _, n := range h.Nodes() {
		s += ">node:" + strconv.Itoa(int(n))
	}
	return s
}

// IsZero reports that there are no hints.
func (h Hints) IsZero() bool { return h == Hints{} }

// Zones are the zones, sorted.
func (h Hints) Zones() []string {
	zones, _, _ := strings.Cut(h.text(), ";")
	if zones == "" {
		return nil
	}
	return strings.Split(zones, ",")
}

// Nodes are the numbers of the nodes, sorted.
func (h Hints) Nodes() []uint16 {
	_, text, _ := strings.Cut(h.text(), ";")
	var nodes []uint16
	for part := range strings.SplitSeq(text, ",") {
		if n, err := strconv.ParseUint(part, 10, 16); err == nil {
			nodes = append(nodes, uint16(n))
		}
	}
	slices.Sort(nodes)
	return nodes
}

// HasZones reports whether any zone is named.
func (h Hints) HasZones() bool { return !h.IsZero() && !strings.HasPrefix(h.text(), ";") }

// HasNodes reports whether any node is named.
func (h Hints) HasNodes() bool { return !h.IsZero() && !strings.HasSuffix(h.text(), ";") }

// ForZone reports whether clients of the zone are meant.
func (h Hints) ForZone(zone string) bool { return zone != "" && slices.Contains(h.Zones(), zone) }

// ForNode reports whether clients of the node are meant.
func (h Hints) ForNode(number uint16) bool { return slices.Contains(h.Nodes(), number) }

// checkHintZone allows what a label value may be, and so none of the marks
// between hints.
func checkHintZone(zone string) error {
	if zone == "" || len(zone) > maxPortName {
		return fmt.Errorf("zone hint of %d bytes; it should have 1 to %d", len(zone), maxPortName)
	}
	for i := range len(zone) {
		switch c := zone[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			return fmt.Errorf("zone hint %s is no label value", quote(zone))
		}
	}
	return nil
}
