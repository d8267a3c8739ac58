package bpf

import (
	"encoding/binary"
	"net/netip"
)

// ip4 is an IPv4 packet; check the checksum elsewhere, no program reads it.
func ip4(src, dst string, proto byte, payload []byte) []byte {
	p := make([]byte, 20, 20+len(payload))
	p[0] = 0x45
	binary.BigEndian.PutUint16(p[2:], uint16(20+len(payload)))
	p[8], p[9] = 64, proto
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	copy(p[12:], s[:])
	copy(p[16:], d[:])
	binary.BigEndian.PutUint16(p[10:], checksum(p))
	return append(p, payload...)
}

func ip6(src, dst string, next byte, payload []byte) []byte {
	p := make([]byte, 40, 40+len(payload))
	p[0] = 0x60
	binary.BigEndian.PutUint16(p[4:], uint16(len(payload)))
	p[6], p[7] = next, 64
	s, d := netip.MustParseAddr(src).As16(), netip.MustParseAddr(dst).As16()
	copy(p[8:], s[:])
	copy(p[24:], d[:])
	return append(p, payload...)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// frame puts an Ethernet header before an IP packet, as test runs need it.
func frame(packet []byte) []byte {
	f := make([]byte, 14, 14+len(packet))
	f[12], f[13] = 0x08, 0x00
	if len(packet) > 0 && packet[0]>>4 == 6 {
		f[12], f[13] = 0x86, 0xdd
	}
	return append(f, packet...)
}

// neighbour is a neighbour solicitation.
func neighbour(src, dst string) []byte {
	p := ip6(src, dst, 58, append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 16)...))
	p[7] = 255
	return p
}
