#!/usr/bin/env bash
# Builds what the lab runs, from the Go module proxy, into $LAB_BIN
# (default: .cache/kubernetes/bin of the tree, which git ignores).
#   build.sh                 everything
#   build.sh k8s|etcd|tools|coredns   one part
# Environment: LAB_BIN, LAB_JOBS (go build -p, default 2), LAB_NICE (default 10).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
jobs=${LAB_JOBS:-2}
mkdir -p "$bin"
export CGO_ENABLED=0 GOFLAGS="-buildvcs=false -trimpath -mod=readonly -p=$jobs"
gb() { nice -n "${LAB_NICE:-10}" go build "$@"; }

build_k8s() {
  cd "$here/build/kubernetes"
  local v minor p ld
  v=$(awk '$1=="require" && $2=="k8s.io/kubernetes" {print $3}' go.mod)
  minor=${v#v1.}; minor=${minor%%.*}
  for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    ld+=" -X $p.gitVersion=$v -X $p.gitMajor=1 -X $p.gitMinor=$minor -X $p.gitTreeState=clean -X $p.gitCommit=module"
  done
  for c in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do
    local t0=$SECONDS
    gb -ldflags "-s -w$ld" -o "$bin/$c" "k8s.io/kubernetes/cmd/$c"
    printf '%-26s %4ds %6d KiB\n' "$c" $((SECONDS - t0)) $(($(stat -c %s "$bin/$c") / 1024))
  done
}
build_etcd() {
  cd "$here/build/etcd"
  local t0=$SECONDS
  gb -ldflags '-s -w' -o "$bin/etcd" go.etcd.io/etcd/server/v3
  printf '%-26s %4ds %6d KiB\n' etcd $((SECONDS - t0)) $(($(stat -c %s "$bin/etcd") / 1024))
}
build_coredns() {
  cd "$here/build/coredns"
  local t0=$SECONDS
  gb -ldflags '-s -w' -o "$bin/coredns" .
  printf '%-26s %4ds %6d KiB\n' coredns $((SECONDS - t0)) $(($(stat -c %s "$bin/coredns") / 1024))
}
build_tools() {
  cd "$here/tools"
  local t0=$SECONDS
  gb -ldflags '-s -w' -o "$bin/" ./cmd/...
  printf '%-26s %4ds\n' tools $((SECONDS - t0))
}

for part in ${*:-etcd tools k8s coredns}; do "build_$part"; done
