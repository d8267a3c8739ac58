package main

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

func prefixTexts(prefixes []*pb.Prefix) []string {
	texts := []string{}
	for _, p := range prefixes {
		addr, ok := netip.AddrFromSlice(p.Address)
		if !ok {
			continue
		}
		texts = append(texts, netip.PrefixFrom(addr, int(p.Bits)).String())
	}
	return texts
}

func shortFingerprint(f string) string {
	if len(f) > 16 {
		return f[:16]
	}
	return f
}

// timeText of Unix nanoseconds; "" for none.
func timeText(nanos int64) string {
	if nanos == 0 {
		return ""
	}
	return time.Unix(0, nanos).UTC().Format(time.RFC3339)
}

// ago says how long ago Unix nanoseconds were.
func (c *cli) ago(nanos int64) string {
	if nanos == 0 {
		return ""
	}
	return c.span(time.Unix(0, nanos)) + " ago"
}

// span is the time since t, as kubectl writes it.
func (c *cli) span(t time.Time) string {
	d := c.env.Now().Sub(t)
	switch {
	case d < 0:
		return "0s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func firstLine(err error) string {
	if err == nil {
		return ""
	}
	line, _, _ := strings.Cut(err.Error(), "\n")
	return printable(line)
}
