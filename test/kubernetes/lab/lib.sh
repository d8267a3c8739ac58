# Sourced by the lab's scripts. Names, addresses and small helpers.
# shellcheck shell=bash
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=$(cd "$here/../../.." && pwd)/.cache/kubernetes # ignored by git, kept by `make clean`
bin=${LAB_BIN:-$cache/bin}
last=$cache/last # folder of the lab that was made last

die() { echo "$(basename "$0"): $*" >&2; exit 1; }

# lab_find: LAB_DIR from the environment, else the last one up.sh made.
lab_find() {
  if [[ -z ${LAB_DIR:-} ]]; then
    [[ -f $last ]] || die "no lab: set LAB_DIR or run up.sh"
    LAB_DIR=$(cat "$last")
  fi
  LAB_DIR=$(readlink -f "$LAB_DIR")
  [[ -f $LAB_DIR/lab.env ]] || die "no lab in $LAB_DIR"
  # shellcheck disable=SC1091
  . "$LAB_DIR/lab.env"
}

# Addressing. Cluster i (1..60), node n (1..200).
under4()  { echo "172.30.$1.$2"; }              # underlay, /24 a cluster; .1 router, .2 control plane, .10+n nodes
under6()  { printf 'fd30:%x::%x\n' "$1" "$2"; } # underlay, /64 a cluster
pod4()    { echo "10.$((64 + $1)).0.0/16"; }
svc4()    { echo "10.$((128 + $1)).0.0/16"; }
svc4_n()  { echo "10.$((128 + $1)).0.$2"; }
pod6()    { printf 'fd10:%x::/56\n' "$1"; }
svc6()    { printf 'fd20:%x::/112\n' "$1"; }
svc6_n()  { printf 'fd20:%x::%x\n' "$1" "$2"; }
hostport() { echo $((LAB_PORT_BASE + $1)); }
# LAB_OVERLAP=1 gives every cluster cluster 1's pod and service ranges.
cidr_i()  { if [[ ${LAB_OVERLAP:-0} = 1 ]]; then echo 1; else echo "$1"; fi; }

netns() { echo "klab-$LAB_ID-$1"; }             # network namespace of a machine
machine_pid() { cat "$LAB_DIR/m/$1/pid" 2>/dev/null; }
# alive NAME: the machine's first process is still the one we started.
alive() {
  local p s
  p=$(machine_pid "$1") || return 1
  s=$(awk '{print $22}' "/proc/$p/stat" 2>/dev/null) || return 1
  [[ -n $s && $s = "$(cat "$LAB_DIR/m/$1/start" 2>/dev/null)" ]]
}
# enter NAME CMD...: run a command in all of a machine's namespaces and cgroups.
enter() (
  m=$1; shift
  alive "$m" || die "machine $m is not running"
  while read -r g; do echo "$BASHPID" > "$g/cgroup.procs"; done < "$LAB_DIR/m/$m/cgroups"
  exec nsenter -t "$(machine_pid "$m")" -m -u -i -n -p -C -- "$@"
)
kc() { local c=$1; shift; "$bin/kubectl" --kubeconfig "$LAB_DIR/$c/admin.kubeconfig" --cache-dir "$LAB_DIR/$c/kubecache" "$@"; }
clusters() { seq -f 'c%.0f' 1 "$LAB_CLUSTERS"; }
nodes_of() { [[ $LAB_NODES = 0 ]] || seq -f "$1-n%.0f" 1 "$LAB_NODES"; }

# cgroup v1 hierarchies of this process: "controllers path" a line; v2 as "unified".
own_cgroups() {
  awk -F: '{c=$2; if(c=="")c="unified"; sub(/^name=/,"",c); print c, $3}' /proc/self/cgroup
}
cg_dir() { # cg_dir CONTROLLER PATH -> the directory, if it is mounted
  local m
  if [[ $1 = unified ]]; then m=$(awk '$3=="cgroup2"{print $2; exit}' /proc/mounts)
  else m=$(awk -v c="$1" '$3=="cgroup"{n=split($4,o,","); for(i=1;i<=n;i++) if(o[i]==c||o[i]=="name="c){print $2; exit}}' /proc/mounts); fi
  [[ -n $m ]] && echo "$m${2%/}"
}

# wire NAME CLUSTER# HOST#: a machine's network namespace and its link to its cluster's bridge.
# The link's address is the machine's own, as a card's is: neighbours who knew the machine before a
# power cut know it afterwards.
wire() {
  local name=$1 i=$2 h=$3 ns u
  ns=$(netns "$name") u=$(netns u)
  ip netns add "$ns"
  ip -n "$u" link add "v-$name" type veth peer name eth0 netns "$ns"
  ip -n "$u" link set "v-$name" master "br$i" up
  ip -n "$ns" link set lo up
  ip -n "$ns" link set eth0 address "$(printf '02:74:%02x:%02x:%02x:%02x' $((0x${LAB_ID:0:2})) $((0x${LAB_ID:2:2})) "$i" "$h")" up
  ip -n "$ns" addr add "$(under4 "$i" "$h")/24" dev eth0
  ip -n "$ns" addr add "$(under6 "$i" "$h")/64" dev eth0 nodad
  ip -n "$ns" route add default via "$(under4 "$i" 1)"
  ip -n "$ns" -6 route add default via "$(under6 "$i" 1)"
  ip netns exec "$ns" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
}

# cold NAME: nothing of the machine's network outlives a power cut. Left as it is where
# up.sh put the lab's own routes there, and for control planes (labfwd is inside).
cold() {
  [[ $LAB_CNI = 0 && $1 != *-cp ]] || return 0
  # its cable first: the namespace itself may be held for some moments more
  ip -n "$(netns u)" link del "v-$1" 2> /dev/null || true
  ip netns del "$(netns "$1")"
  wire "$1" "$(sed -n 's/^CLUSTER=//p' "$LAB_DIR/m/$1/env")" "$(sed -n 's/^HOST=//p' "$LAB_DIR/m/$1/env")"
}

# boot NAME: start a machine's first process (m/NAME and its network namespace are there).
boot() {
  local name=$1 d=$LAB_DIR/m/$1
  if [[ -f $d/cgroups ]]; then
    # no cgroup outlives a power cut: a kubelet that finds those of its pods asks
    # for each of their containers in vain, and begins its work a minute late
    while read -r g; do find "$g" -mindepth 1 -depth -type d -exec rmdir {} + 2> /dev/null || true; done < "$d/cgroups"
    cat "$d/cgroups" >> "$d/cgroups.old"
  fi
  rm -f "$d/cgroups" "$d/ready"
  (
    set +e
    # own cgroup in every hierarchy, below the one this script is in
    while read -r c p; do
      g=$(cg_dir "$c" "$p") || continue
      g=$g/klab-$LAB_ID/$name
      mkdir -p "$g"
      if [[ $c = cpuset ]]; then
        for f in cpus mems; do
          cat "${g%/*/*}/cpuset.$f" > "${g%/*}/cpuset.$f"; cat "${g%/*/*}/cpuset.$f" > "$g/cpuset.$f"
        done
      fi
      echo "$g" >> "$d/cgroups"
      echo "$BASHPID" > "$g/cgroup.procs"
    done < <(own_cgroups)
    exec setsid nsenter --net="/run/netns/$(netns "$name")" unshare --mount --uts --ipc --cgroup --pid --fork --kill-child=KILL \
      -- "$here/machine.sh" "$d" < /dev/null >> "$d/machine.log" 2>&1
  ) &
  for _ in $(seq 200); do alive "$name" && return; sleep 0.05; done
  die "machine $name did not start: see $d/machine.log"
}
