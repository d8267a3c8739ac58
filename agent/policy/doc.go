// Package policy turns network policies, identities and pods into rows that a
// BPF program can look up, and explains verdicts. Pure: no I/O, no clock; what
// comes out depends on what is in, never on the order in which it came.
//
//	policies ─┐
//	pods ─────┼► subject: all that decides about a pod but for the other end
//	identities ► policy rows (subject, identity) ─┐
//	addresses ─► class rows: address → class      ├► Lookup: verdict and rule
//	             policy rows (subject, class) ────┘
//
// A subject is the hash of its content, so a changed policy is another subject:
// its rows are there before a pod is given it, which is one write. What is no
// longer wanted stays until Sweep, which the caller calls once the kernel holds
// what Apply said: rows of the old subject then cover what changed meanwhile.
//
// Stages, in this order (ClusterNetworkPolicy v0.2): the Admin tier, in which the
// rule of lowest rank that matches accepts, denies or passes on; NetworkPolicy,
// final for pods that one isolates; the Baseline tier; else everything may pass.
package policy
