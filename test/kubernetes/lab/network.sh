#!/usr/bin/env bash
# network.sh CLUSTER      gives a cluster's nodes the lab's own pod network: ptp and
#   host-local, a route a node, masquerade on leaving the cluster. up.sh does so unless
#   --skip-cni says that another one will come.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
lab_find
[[ -f $LAB_DIR/${1:-}/podcidrs ]] || die "usage: network.sh CLUSTER, one that has nodes"
c=$1; k=$(cidr_i "${c#c}")
while read -r m _ p4 _ p6; do
  ns=$(netns "$m")
  while read -r o oip o4 oip6 o6; do
    [[ $o = "$m" ]] && continue
    ip -n "$ns" route replace "$o4" via "$oip"
    [[ -z $o6 ]] || ip -n "$ns" -6 route replace "$o6" via "$oip6"
  done < "$LAB_DIR/$c/podcidrs"
  ip netns exec "$ns" nft -f - <<T
table inet klab {
chain post {
  type nat hook postrouting priority srcnat + 5;
  ip saddr $(pod4 "$k") ip daddr != $(pod4 "$k") oifname "eth0" masquerade
  ip6 saddr $(pod6 "$k") ip6 daddr != $(pod6 "$k") oifname "eth0" masquerade
}
}
T
  r6='' d6=''
  [[ -z $p6 ]] || { r6=", [{\"subnet\": \"$p6\"}]"; d6=', {"dst": "::/0"}'; }
  cat > "$LAB_DIR/m/$m/cni.tmp" <<T
{"cniVersion": "0.4.0", "name": "lab", "plugins": [
{"type": "ptp", "ipMasq": false, "mtu": 1500, "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam",
 "ranges": [[{"subnet": "$p4"}]$r6], "routes": [{"dst": "0.0.0.0/0"}$d6]}},
{"type": "portmap", "capabilities": {"portMappings": true}}
]}
T
  enter "$m" cp "$LAB_DIR/m/$m/cni.tmp" /etc/cni/net.d/10-lab.conflist
done < "$LAB_DIR/$c/podcidrs"
while read -r _ oip o4 _ _; do ip -n "$(netns "$c-cp")" route replace "$o4" via "$oip"; done < "$LAB_DIR/$c/podcidrs"
