#!/usr/bin/env bash
# Takes the lab down and removes all that up.sh made.
#   down.sh [--keep]     --keep leaves LAB_DIR (logs, data) in place
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
lab_find
if p=$(cat "$LAB_DIR/labfwd.pid" 2>/dev/null) && [[ $(awk '{print $22}' "/proc/$p/stat" 2>/dev/null) = "$(cat "$LAB_DIR/labfwd.start")" ]]; then
  kill "$p"
fi
for d in "$LAB_DIR"/m/*/; do
  m=$(basename "$d")
  alive "$m" && kill -KILL "$(machine_pid "$m")"
done
for d in "$LAB_DIR"/m/*/; do
  for _ in $(seq 100); do alive "$(basename "$d")" || break; sleep 0.1; done
done
# network namespaces (they take the links with them)
for ns in $(ip netns list | awk '{print $1}' | grep -E "^klab-$LAB_ID-"); do ip netns del "$ns"; done
# cgroups, deepest first
for _ in 1 2 3 4 5; do
  left=0
  while read -r g; do
    [[ $g == */klab-$LAB_ID/* && -d $g ]] || continue
    find "$g" -depth -type d -exec rmdir {} \; 2>/dev/null
    [[ -d $g ]] && left=1
    rmdir "${g%/*}" 2>/dev/null
  done < <(cat "$LAB_DIR"/m/*/cgroups "$LAB_DIR"/m/*/cgroups.old 2>/dev/null)
  [[ $left = 0 ]] && break; sleep 0.5
done
[[ $left = 0 ]] || echo "down.sh: some cgroups are still in use" >&2
if [[ ${1:-} = --keep ]]; then mv "$LAB_DIR/lab.env" "$LAB_DIR/lab.env.down"
else rm -rf --one-file-system "$LAB_DIR"; fi
[[ $(cat "$last" 2>/dev/null) = "$LAB_DIR" ]] && rm -f "$last"
exit 0
