package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// replay runs a program on one packet again and again, by BPF_PROG_TEST_RUN. As
// the kernel hands the same packet to every run, translated by the one before, a
// small program in front makes its headers anew, with another source port where
// every packet is to be the first of its flow, and goes on by a tail call. What
// that costs, an empty program behind it tells.
type replay struct {
	front, empty  *ebpf.Program
	target, count *ebpf.Map
	next          uint32 // source port
}

// emptyRuns of one measurement.
const emptyRuns = 200_000

const (
	ethLen     = 14
	headers    = ethLen + 20 + 20 // Ethernet, IPv4, TCP
	sourcePort = ethLen + 20

	skbData, skbDataEnd = 76, 80 // in struct __sk_buff

	verdictNext     = 1<<32 - 1
	verdictRedirect = 7
)

// newReplay is for one frame. fresh: source ports from that of the frame on.
func newReplay(frame []byte, fresh bool) (r *replay, err error) {
	r = &replay{next: uint32(binary.BigEndian.Uint16(frame[sourcePort:]))}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	if r.target, err = ebpf.NewMap(&ebpf.MapSpec{Name: "bench_target", Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1}); err != nil {
		return r, err
	}
	if r.count, err = ebpf.NewMap(&ebpf.MapSpec{Name: "bench_count", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}); err != nil {
		return r, err
	}
	if r.empty, err = newProgram(asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}); err != nil {
		return r, fmt.Errorf("empty program: %w", err)
	}
	if r.front, err = newProgram(r.code(frame, fresh)); err != nil {
		return r, fmt.Errorf("replaying program: %w", err)
	}
	return r, nil
}

func newProgram(code asm.Instructions) (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{Name: "bench", Type: ebpf.SchedCLS, Instructions: code, License: "GPL"})
}

func (r *replay) code(frame []byte, fresh bool) asm.Instructions {
	code := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}
	if fresh {
		code = append(code,
			asm.StoreImm(asm.RFP, -4, 0, asm.Word),
			asm.LoadMapPtr(asm.R1, r.count.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.LoadMem(asm.R7, asm.R0, 0, asm.Word),
			asm.Add.Imm(asm.R7, 1),
			asm.StoreMem(asm.R0, 0, asm.R7, asm.Word),
			asm.HostTo(asm.BE, asm.R7, asm.Half),
		)
	}
	code = append(code,
		asm.LoadMem(asm.R2, asm.R6, skbData, asm.Word),
		asm.LoadMem(asm.R3, asm.R6, skbDataEnd, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, headers),
		asm.JGT.Reg(asm.R4, asm.R3, "out"),
	)
	for at := ethLen; at < headers; at += 8 {
		code = append(code, asm.LoadImm(asm.R5, int64(binary.NativeEndian.Uint64(frame[at:])), asm.DWord), asm.StoreMem(asm.R2, int16(at), asm.R5, asm.DWord))
	}
	if fresh {
		code = append(code, asm.StoreMem(asm.R2, sourcePort, asm.R7, asm.Half))
	}
	return append(code,
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.LoadMapPtr(asm.R2, r.target.FD()),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, 99).WithSymbol("out"),
		asm.Return(),
	)
}

// timed runs a program so often; every run must end in the verdict. By our own
// clock: the kernel's answer is in whole nanoseconds, of which an empty program
// takes few.
func timed(prog *ebpf.Program, frame []byte, repeat int, verdict uint32) (ns float64, err error) {
	begin := time.Now()
	got, _, err := prog.Benchmark(frame, repeat, nil)
	took := time.Since(begin)
	if err == nil && got != verdict {
		err = fmt.Errorf("the verdict was %d, not %d", int32(got), int32(verdict))
	}
	return float64(took.Nanoseconds()) / float64(repeat), err
}

// each is what prog costs beyond an empty program in its place, on top of what
// the empty program costs without anything in front; in nanoseconds.
func (r *replay) each(prog *ebpf.Program, frame []byte, repeat int, verdict uint32) (cost, empty float64, err error) {
	if empty, err = timed(r.empty, frame, emptyRuns, verdictNext); err != nil {
		return 0, 0, fmt.Errorf("empty program: %w", err)
	}
	if err := r.target.Put(uint32(0), uint32(r.empty.FD())); err != nil {
		return 0, 0, fmt.Errorf("tail call: %w", err)
	}
	behind, err := timed(r.front, frame, emptyRuns, verdictNext)
	if err != nil {
		return 0, 0, fmt.Errorf("empty program behind another: %w", err)
	}
	if err := r.target.Put(uint32(0), uint32(prog.FD())); err != nil {
		return 0, 0, fmt.Errorf("tail call: %w", err)
	}
	// Source ports begin anew: an empty program has used some up for nothing.
	if err := r.count.Put(uint32(0), r.next); err != nil {
		return 0, 0, err
	}
	whole, err := timed(r.front, frame, repeat, verdict)
	r.next += uint32(repeat)
	return whole - behind + empty, empty, err
}

func (r *replay) close() error {
	var errs []error
	for _, p := range []*ebpf.Program{r.front, r.empty} {
		if p != nil {
			errs = append(errs, p.Close())
		}
	}
	for _, m := range []*ebpf.Map{r.target, r.count} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}
