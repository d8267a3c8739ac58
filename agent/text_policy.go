package agent

import (
	"cmp"
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

func comparePolicy(a, b PolicyKey) int {
	return cmp.Or(cmp.Compare(a.Subject, b.Subject), cmp.Compare(a.Dir, b.Dir), cmp.Compare(a.Peer, b.Peer),
		cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Bits, b.Bits))
}

func compareMaglev(a, b MaglevKey) int {
	return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Chunk, b.Chunk))
}

func compareRanges(a, b RangeKey) int {
	return cmp.Or(cmp.Compare(a.Service, b.Service), comparePrefixes(a.Prefix, b.Prefix))
}

func (p PolicyPeer) String() string {
	switch {
	case p == PeerAny:
		return "any"
	case p.Class():
		return fmt.Sprintf("class:%016x", uint64(p))
	}
	return formatIdentity(uint32(p))
}

func (f *fields) policyPeer(s string) PolicyPeer {
	if s == "any" {
		return PeerAny
	}
	if class, ok := strings.CutPrefix(s, "class:"); ok {
		id, err := parseServiceID(class)
		f.fail("peer", s, err)
		return PolicyPeer(id)
	}
	return PolicyPeer(f.parseIdentity(s))
}

func (d Direction) String() string {
	if d == Egress {
		return "egress"
	}
	return "ingress"
}

// ports are "any", "tcp", "tcp/80" or "tcp/8080-8095".
func (k PolicyKey) ports() string {
	switch proto := protocolName(k.Proto); {
	case k.Proto == 0:
		return "any"
	case k.Bits == 0:
		return proto
	case k.Bits >= 16:
		return fmt.Sprintf("%s/%d", proto, k.Port)
	default:
		return fmt.Sprintf("%s/%d-%d", proto, k.Port, k.Port|(1<<(16-k.Bits)-1))
	}
}

func parsePorts(s string, k *PolicyKey) (err error) {
	if s == "any" {
		return nil
	}
	proto, ports, some := strings.Cut(s, "/")
	if k.Proto, err = parseProtocol(proto); err != nil || !some {
		return err
	}
	first, last, several := strings.Cut(ports, "-")
	lo, err := strconv.ParseUint(first, 10, 16)
	if err != nil {
		return err
	}
	hi := lo
	if several {
		if hi, err = strconv.ParseUint(last, 10, 16); err != nil {
			return err
		}
	}
	size := hi - lo + 1
	if hi < lo || size&(size-1) != 0 || lo&(size-1) != 0 || size == 1<<16 {
		return errors.New("a row covers a power of two of ports, at a multiple of it")
	}
	k.Port, k.Bits = uint16(lo), uint8(16-bits.TrailingZeros64(size))
	return nil
}

var verdicts = []string{NoVerdict: "none", Accept: "accept", Deny: "deny", Pass: "pass"}

func (v Verdict) String() string {
	if int(v) < len(verdicts) {
		return verdicts[v]
	}
	return "verdict" + strconv.Itoa(int(v))
}

func (s PolicyStage) String() string { return fmt.Sprintf("%s:%d:%08x", s.Verdict, s.Rank, s.Rule) }

func (f *fields) stage(name string) (out PolicyStage) {
	s, ok := f.take(name)
	if !ok {
		return out
	}
	words := strings.Split(s, ":")
	if len(words) != 3 {
		f.fail(name, s, errors.New("want verdict:rank:rule"))
		return out
	}
	at := -1
	for i, v := range verdicts {
		if v == words[0] {
			at = i
		}
	}
	if at < 0 {
		f.fail(name, s, errors.New("no such verdict"))
	}
	rank, err := strconv.ParseUint(words[1], 10, 16)
	f.fail(name, s, err)
	return PolicyStage{Verdict: Verdict(max(at, 0)), Rank: uint16(rank), Rule: f.parseRule(words[2])}
}

func (f *fields) parseRule(s string) uint32 {
	n, err := strconv.ParseUint(s, 16, 32)
	f.fail("rule", s, err)
	return uint32(n)
}

func formatPolicy(k PolicyKey, v PolicyRow) string {
	s := fmt.Sprintf("%016x %s %s %s", uint64(k.Subject), k.Dir, k.Peer, k.ports())
	if v.Admin != (PolicyStage{}) {
		s += " admin=" + v.Admin.String()
	}
	if v.Allow != 0 {
		s += fmt.Sprintf(" allow=%08x", v.Allow)
	}
	if v.Base != (PolicyStage{}) {
		s += " base=" + v.Base.String()
	}
	return s
}

func parsePolicy(line string) (k PolicyKey, v PolicyRow, err error) {
	f := splitLine(line, 4)
	k.Subject = f.subject(f.words[0])
	switch f.words[1] {
	case "ingress":
	case "egress":
		k.Dir = Egress
	default:
		f.fail("direction", f.words[1], errors.New("want ingress or egress"))
	}
	k.Peer = f.policyPeer(f.words[2])
	f.fail("ports", f.words[3], parsePorts(f.words[3], &k))
	v.Admin, v.Base = f.stage("admin"), f.stage("base")
	if s, ok := f.take("allow"); ok {
		v.Allow = f.parseRule(s)
	}
	return k, v, f.done()
}

func (f *fields) subject(s string) SubjectKey {
	id, err := parseServiceID(s)
	f.fail("subject", s, err)
	return SubjectKey(id)
}

// flagNames writes flags by name, the lowest bit first.
func flagNames(flags uint32, names []string) string {
	var out []string
	for i, name := range names {
		if flags&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	if rest := flags >> len(names) << len(names); rest != 0 {
		out = append(out, strconv.FormatUint(uint64(rest), 10))
	}
	if out == nil {
		return "-"
	}
	return strings.Join(out, ",")
}

func (f *fields) flagNames(name string, bits int, names []string) (flags uint32) {
	s, ok := f.take(name)
	if !ok || s == "-" {
		return 0
	}
words:
	for word := range strings.SplitSeq(s, ",") {
		for i, name := range names {
			if name == word {
				flags |= 1 << i
				continue words
			}
		}
		n, err := strconv.ParseUint(word, 10, bits)
		f.fail(name, s, err)
		flags |= uint32(n)
	}
	return flags
}

var (
	subjectFlags = []string{"isolated-in", "isolated-out", "classes-in", "classes-out", "closed"}
	configFlags  = []string{"encrypt-all", "masquerade", "chained", "gateway"}
	ipFlags      = []string{"tunnel-address", "encrypted", "here", "across"}
)

func (f SubjectFlags) String() string { return flagNames(uint32(f), subjectFlags) }
func (f IPFlags) String() string      { return flagNames(uint32(f), ipFlags) }
func (f ConfigFlags) String() string  { return flagNames(uint32(f), configFlags) }

func formatSubject(k SubjectKey, v SubjectRow) string {
	return fmt.Sprintf("%016x flags=%s", uint64(k), v.Flags)
}

func parseSubject(line string) (k SubjectKey, v SubjectRow, err error) {
	f := splitLine(line, 1)
	k = f.subject(f.words[0])
	v.Flags = SubjectFlags(f.flagNames("flags", 32, subjectFlags))
	return k, v, f.done()
}

func formatClass(k Addr, v ClassRow) string { return fmt.Sprintf("%s class=%016x", k, uint64(v.ID)) }

func (f *fields) class() ClassRow {
	s, _ := f.take("class")
	id, err := parseServiceID(s)
	f.fail("class", s, err)
	return ClassRow{PolicyPeer(id)}
}

func parseClass(line string) (k Addr, v ClassRow, err error) {
	f := splitLine(line, 1)
	k, v = f.parseAddr(f.words[0]), f.class()
	return k, v, f.done()
}

func formatClassPrefix(k Prefix, v ClassRow) string {
	return fmt.Sprintf("%s class=%016x", k, uint64(v.ID))
}

func parseClassPrefix(line string) (k Prefix, v ClassRow, err error) {
	f := splitLine(line, 1)
	k, v = f.parsePrefix(f.words[0]), f.class()
	return k, v, f.done()
}

func formatMaglev(k MaglevKey, v MaglevRow) string {
	words := make([]string, len(v.Entry))
	for i, e := range v.Entry {
		words[i] = fmt.Sprintf("%d:%d", e>>16, e&0xffff)
	}
	return fmt.Sprintf("%016x/%d %s", k.Service, k.Chunk, strings.Join(words, ","))
}

func parseMaglev(line string) (k MaglevKey, v MaglevRow, err error) {
	f := splitLine(line, 2)
	service, chunk, _ := strings.Cut(f.words[0], "/")
	k.Service, err = parseServiceID(service)
	f.fail("service", service, err)
	n, err := strconv.ParseUint(chunk, 10, 32)
	f.fail("chunk", chunk, err)
	k.Chunk = uint32(n)
	words := strings.Split(f.words[1], ",")
	if len(words) != len(v.Entry) {
		return k, v, fmt.Errorf("%d entries, want %d", len(words), len(v.Entry))
	}
	for i, word := range words {
		cluster, slot, _ := strings.Cut(word, ":")
		c, err := strconv.ParseUint(cluster, 10, 16)
		f.fail("entry", word, err)
		s, err := strconv.ParseUint(slot, 10, 16)
		f.fail("entry", word, err)
		v.Entry[i] = uint32(c)<<16 | uint32(s)
	}
	return k, v, f.done()
}

func formatRange(k RangeKey, v RangeRow) string {
	s := fmt.Sprintf("%016x %s", k.Service, k.Prefix)
	if v.Allow {
		s += " allow=1"
	}
	return s
}

func parseRange(line string) (k RangeKey, v RangeRow, err error) {
	f := splitLine(line, 2)
	k.Service, err = parseServiceID(f.words[0])
	f.fail("service", f.words[0], err)
	k.Prefix = f.parsePrefix(f.words[1])
	v.Allow = f.number("allow", 1) != 0
	return k, v, f.done()
}

func formatConfig(_ ConfigKey, v ConfigRow) string {
	s := fmt.Sprintf("node cluster=%d number=%d flags=%s ports=%d-%d", v.Cluster, v.Node, v.Flags, v.PortMin, v.PortMax)
	if v.TunnelMTU != 0 {
		s += fmt.Sprintf(" mtu=%d", v.TunnelMTU)
	}
	for _, a := range []struct {
		name string
		addr Addr
	}{{"node4", v.Node4}, {"node6", v.Node6}, {"tunnel4", v.Tunnel4}, {"tunnel6", v.Tunnel6}} {
		if a.addr != (Addr{}) {
			s += " " + a.name + "=" + a.addr.String()
		}
	}
	return s
}

func parseConfig(line string) (k ConfigKey, v ConfigRow, err error) {
	f := splitLine(line, 1)
	if f.words[0] != "node" {
		f.fail("key", f.words[0], errors.New("want node"))
	}
	v.Cluster, v.Node = uint16(f.number("cluster", 16)), uint16(f.number("number", 16))
	v.Flags = ConfigFlags(f.flagNames("flags", 32, configFlags))
	if s, ok := f.take("ports"); ok {
		lo, hi, _ := strings.Cut(s, "-")
		first, err := strconv.ParseUint(lo, 10, 16)
		f.fail("ports", s, err)
		last, err := strconv.ParseUint(hi, 10, 16)
		f.fail("ports", s, err)
		v.PortMin, v.PortMax = uint16(first), uint16(last)
	}
	if s, ok := f.take("mtu"); ok {
		mtu, err := strconv.ParseUint(s, 10, 16)
		f.fail("mtu", s, err)
		v.TunnelMTU = uint16(mtu)
	}
	v.Node4, v.Node6, v.Tunnel4, v.Tunnel6 = f.addr("node4"), f.addr("node6"), f.addr("tunnel4"), f.addr("tunnel6")
	return k, v, f.done()
}

func (f *fields) parseIdentity(s string) uint32 {
	c, n, _ := strings.Cut(s, ":")
	cluster, err := strconv.ParseUint(c, 10, 12)
	f.fail("identity", s, err)
	number, err := strconv.ParseUint(n, 10, clustermesh.IdentityBits)
	f.fail("identity", s, err)
	return uint32(clustermesh.MakeIdentity(clustermesh.ID(cluster), uint32(number)))
}
