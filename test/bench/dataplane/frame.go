package main

import (
	"encoding/binary"
	"net/netip"
)

const (
	syn = 2
	ack = 16
)

// frame is a TCP segment of 64 bytes of data over IPv4, with right checksums.
func frame(from, to netip.AddrPort, flags byte) []byte {
	const data = 64
	b := make([]byte, headers+data)
	binary.BigEndian.PutUint16(b[12:], 0x0800)
	ip := b[ethLen:]
	ip[0], ip[8], ip[9] = 0x45, 64, tcp
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	copy(ip[12:], from.Addr().AsSlice())
	copy(ip[16:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(ip[10:], checksum(ip[:20], 0))
	l4 := ip[20:]
	binary.BigEndian.PutUint16(l4, from.Port())
	binary.BigEndian.PutUint16(l4[2:], to.Port())
	l4[12], l4[13] = 5<<4, flags
	binary.BigEndian.PutUint16(l4[14:], 65535)
	binary.BigEndian.PutUint16(l4[16:], checksum(l4, sum(ip[12:20], tcp+uint32(len(l4)))))
	return b
}

func sum(b []byte, s uint32) uint32 {
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return s
}

func checksum(b []byte, s uint32) uint16 {
	s = sum(b, s)
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return ^uint16(s)
}
