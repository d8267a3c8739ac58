// Package judge holds tests alone: what agent/policy says is compared with what
// others say who read the same policies.
//
//   - the evaluator of sigs.k8s.io/kube-network-policies, which is not ours
//   - a twin of our own, slow and obvious, written from the texts of both APIs; it
//     covers what that evaluator lacks or gets wrong
//
// The answers of ours are read back from the rows, by the lookup that is the twin
// of bpf/src/policy.h, and for a sample by the C itself; for another, by real
// connections between the pods of a lab.
package judge
