// Package install puts Tombolo into a Kubernetes cluster by its embedded Helm
// chart, takes it out again, and looks at a cluster before and after. What it
// finds out is decided in pure functions (preflight.go, address.go); what it
// does goes through Helm's library, so that `helm` itself can go on from there.
package install
