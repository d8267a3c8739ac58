package bpf

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// stackOf is how far a function reaches below its frame pointer: through R10
// itself, or through a copy of it that was moved.
func stackOf(ins asm.Instructions) int {
	depth := 0
	copies := make(map[asm.Register]bool)
	for _, i := range ins {
		class, op := i.OpCode.Class(), i.OpCode
		switch {
		case class.IsLoad() && i.Src == asm.R10, class.IsStore() && i.Dst == asm.R10:
			depth = max(depth, -int(i.Offset))
		case class.IsALU() && op.ALUOp() == asm.Mov:
			copies[i.Dst] = op.Source() == asm.RegSource && i.Src == asm.R10
		case class.IsALU() && op.ALUOp() == asm.Add && op.Source() == asm.ImmSource && copies[i.Dst]:
			depth = max(depth, -int(i.Constant))
		}
	}
	return depth
}

// Kernels before 6.9 round each frame up to 32 bytes and allow 512 for a chain of
// calls; the one that runs the tests may be more generous.
func TestStackFits515(t *testing.T) {
	for object, load := range coreObjects {
		spec, err := load()
		if err != nil {
			t.Fatal(err)
		}
		for name, p := range spec.Programs {
			depth, chain := deepest(functions(p), name, nil)
			if depth > 512 {
				t.Errorf("%s: %d bytes of stack: %v", object, depth, chain)
			}
			t.Logf("%s: %s: %d bytes: %v", object, name, depth, chain)
		}
	}
}

// functions are a program and what it calls, by name.
func functions(p *ebpf.ProgramSpec) map[string]asm.Instructions {
	out := make(map[string]asm.Instructions)
	name := ""
	for _, ins := range p.Instructions {
		if s := ins.Symbol(); s != "" {
			name = s
		}
		out[name] = append(out[name], ins)
	}
	return out
}

func deepest(all map[string]asm.Instructions, name string, seen []string) (int, []string) {
	own := (max(stackOf(all[name]), 1) + 31) / 32 * 32
	best, chain := 0, []string(nil)
	for _, ins := range all[name] {
		if ins.IsFunctionCall() {
			if d, c := deepest(all, ins.Reference(), append(seen, name)); d > best {
				best, chain = d, c
			}
		}
	}
	return own + best, append([]string{name}, chain...)
}
