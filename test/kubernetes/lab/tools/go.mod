module github.com/tombolo-mesh/tombolo/test/kubernetes/lab/tools

go 1.26.0

require (
	golang.org/x/sys v0.40.0
	sigs.k8s.io/mcs-api v0.5.2
)
