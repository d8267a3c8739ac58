package linux

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// quarantine is how long a freed address rests: peers may still hold the old
// owner's identity for it.
const quarantine = 10 * time.Minute

// maxPool bounds one pool's addresses, whatever the prefix's size: more pods
// than that do not run on a node, and the file of freed addresses stays small.
const maxPool = 4096

// freedAddress is an address at rest. Owner may have it back at once.
type freedAddress struct {
	Address netip.Addr `json:"address"`
	Owner   string     `json:"owner"`
	At      time.Time  `json:"at"`
}

// pool hands out the addresses of one pod prefix. It is pure: callers say what
// time it is and keep the result on disk.
type pool struct {
	prefix   netip.Prefix
	reserved []netip.Addr          // tunnel addresses
	used     map[netip.Addr]string // → owner (pod UID)
	freed    []freedAddress        // least recently freed first
	next     int                   // offset of the next address that was never used
	size     int                   // offsets [1, size) are usable
}

// newPool knows nothing yet of addresses in use or at rest: see claim and rest.
// The network address, IPv4's broadcast address and the reserved ones (tunnel
// addresses) are never given out.
func newPool(prefix netip.Prefix, reserved []netip.Addr) *pool {
	prefix = prefix.Masked()
	size := maxPool
	if host := prefix.Addr().BitLen() - prefix.Bits(); host < 13 {
		size = 1 << host
		if prefix.Addr().Is4() {
			size-- // broadcast
		}
	}
	return &pool{prefix: prefix, reserved: reserved, used: map[netip.Addr]string{}, next: 1, size: size}
}

// take gives owner an address: the one it had if that is at rest, else one that
// was never used, else the least recently freed that has rested long enough.
func (p *pool) take(owner string, now time.Time) (netip.Addr, error) {
	if i := slices.IndexFunc(p.freed, func(f freedAddress) bool { return f.Owner == owner }); i >= 0 {
		return p.reuse(i, owner), nil
	}
	for ; p.next < p.size; p.next++ {
		a := p.at(p.next)
		if _, taken := p.used[a]; taken || slices.Contains(p.reserved, a) || p.resting(a) {
			continue
		}
		p.next++
		p.used[a] = owner
		return a, nil
	}
	if len(p.freed) > 0 && now.Sub(p.freed[0].At) >= quarantine {
		return p.reuse(0, owner), nil
	}
	when := ""
	if len(p.freed) > 0 {
		when = fmt.Sprintf("; the next one may be reused at %s", p.freed[0].At.Add(quarantine).UTC().Format(time.RFC3339))
	}
	return netip.Addr{}, fmt.Errorf("no free address in %s: %d in use, %d freed less than %s ago%s: remove pods, or give the node a larger pod prefix",
		p.prefix, len(p.used), len(p.freed), quarantine, when)
}

func (p *pool) reuse(i int, owner string) netip.Addr {
	a := p.freed[i].Address
	p.freed = slices.Delete(p.freed, i, i+1)
	p.used[a] = owner
	return a
}

// claim marks a as owner's, as it is found in the state file. It reports whether
// it is so now: false if another owner has it, or it is not of this pool.
func (p *pool) claim(a netip.Addr, owner string) bool {
	if !p.prefix.Contains(a) || slices.Contains(p.reserved, a) {
		return false
	}
	if have, taken := p.used[a]; taken {
		return have == owner
	}
	p.freed = slices.DeleteFunc(p.freed, func(f freedAddress) bool { return f.Address == a })
	p.used[a] = owner
	return true
}

// release puts owner's address to rest; what owner does not hold stays.
func (p *pool) release(a netip.Addr, owner string, now time.Time) {
	if p.used[a] != owner || owner == "" {
		return
	}
	delete(p.used, a)
	p.rest(freedAddress{Address: a, Owner: owner, At: now}, now)
}

// rest adds an address at rest. A time in the future (the clock was set back)
// counts as now, or the address would rest for too long.
func (p *pool) rest(f freedAddress, now time.Time) {
	if _, taken := p.used[f.Address]; taken || !p.prefix.Contains(f.Address) || p.resting(f.Address) {
		return
	}
	if f.At.After(now) {
		f.At = now
	}
	i, _ := slices.BinarySearchFunc(p.freed, f.At, func(e freedAddress, at time.Time) int {
		if e.At.After(at) {
			return 1
		}
		return -1 // equal times: after those that are there
	})
	p.freed = slices.Insert(p.freed, i, f)
}

func (p *pool) resting(a netip.Addr) bool {
	return slices.ContainsFunc(p.freed, func(f freedAddress) bool { return f.Address == a })
}

// at is the address at an offset, which is below 1<<13.
func (p *pool) at(offset int) netip.Addr {
	b := p.prefix.Addr().As16()
	low := int(b[14])<<8 | int(b[15]) + offset
	if low > 0xffff { // cannot happen for offsets inside the prefix, which is masked
		return netip.Addr{}
	}
	b[14], b[15] = byte(low>>8), byte(low)
	a := netip.AddrFrom16(b)
	if p.prefix.Addr().Is4() {
		a = a.Unmap()
	}
	return a
}
