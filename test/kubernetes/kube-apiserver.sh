#!/usr/bin/env bash
# The Go tests that want a real kube-apiserver, on one that is up for them alone: a control
# plane of the lab without nodes. They also restart it and compact its etcd. PACKAGES names others.
set -euo pipefail
cd "$(dirname "$0")/../.."

LAB_DIR=$(mktemp -d "${TMPDIR:-/tmp}/tombolo-kube-apiserver.XXXXXX")
export LAB_DIR LAB_PORT_BASE=${LAB_PORT_BASE:-$((20000 + RANDOM % 5000 * 2))}
trap 'test/kubernetes/lab/down.sh || :; rm -rf --one-file-system "$LAB_DIR"' EXIT # also what did not come up
trap 'exit 130' INT TERM
test/kubernetes/lab/up.sh -c 1 -n 0 --mcs
export TOMBOLO_TEST_KUBECONFIG=$LAB_DIR/kubeconfig TOMBOLO_TEST_LAB=$LAB_DIR TOMBOLO_TEST_RESTART=1
# One package after the other: the first of them stops the kube-apiserver.
go run ./test/runtests -p 1 -count=1 -run '^Test(Real|Release$|Server)' ${PACKAGES:-./clustermesh/apiserver/kube ./deploy/install}
