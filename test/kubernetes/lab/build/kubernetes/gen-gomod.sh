#!/usr/bin/env bash
# Regenerate go.mod for another Kubernetes version: gen-gomod.sh v1.37.2
# k8s.io/kubernetes points its staging modules at ./staging, which the module
# zip does not hold; this replaces each with the published module instead
# (k8s.io/kubernetes v1.M.P goes with k8s.io/<staging> v0.M.P).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
ver=${1:?usage: gen-gomod.sh v1.MINOR.PATCH}
sver=v0.${ver#v1.}
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
( cd "$tmp" && printf 'module x\n' > go.mod && go mod download -json "k8s.io/kubernetes@$ver" > dl.json )
up=$(sed -n 's/^\t"GoMod": "\(.*\)",$/\1/p' "$tmp/dl.json")
# the modules required at v0.0.0 are exactly the staging ones
staging=$(awk '$1 ~ /^k8s.io\// && $2=="v0.0.0" {print $1}' "$up" | sort -u)
gover=$(awk '$1=="go"{print $2; exit}' "$up")
{
  printf 'module github.com/tombolo-mesh/tombolo/test/kubernetes/lab/build/kubernetes\n\ngo %s\n\nrequire k8s.io/kubernetes %s\n\nreplace (\n' "$gover" "$ver"
  for m in $staging; do printf '\t%s => %s %s\n' "$m" "$m" "$sver"; done
  printf ')\n'
} > go.mod
rm -f go.sum
nice -n 10 go mod tidy
