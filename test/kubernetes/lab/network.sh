#!/usr/bin/env bash
# network.sh CLUSTER [elsewhere]   gives a cluster's nodes the lab's own pod network: ptp and
#   host-local, a route a node, masquerade on leaving the cluster. up.sh does so unless
#   --skip-cni says that another one will come. elsewhere: pods' addresses are not of the
#   prefixes that Kubernetes gives to nodes, but of ranges that the plugin alone knows.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
lab_find
[[ -f $LAB_DIR/${1:-}/podcidrs ]] || die "usage: network.sh CLUSTER [elsewhere], a cluster that has nodes"
c=$1; k=$(cidr_i "${c#c}"); all4=$(pod4 "$k") all6=$(pod6 "$k") ranges=$LAB_DIR/$c/podcidrs
if [[ ${2:-} = elsewhere ]]; then
  all4=10.$((96 + k)).0.0/16 all6=$(printf 'fd11:%x::/56' "$k") ranges=$LAB_DIR/$c/ranges
  while read -r m ip _ ip6 p6; do
    n=${m##*-n}
    printf '%s %s 10.%d.%d.64/26 %s %s\n' "$m" "$ip" $((96 + k)) $((37 * n)) "$ip6" "${p6:+$(printf 'fd11:%x:0:%x::/64' "$k" $((7 * n)))}"
  done < "$LAB_DIR/$c/podcidrs" > "$ranges"
fi
while read -r m _ p4 _ p6; do
  ns=$(netns "$m")
  while read -r o oip o4 oip6 o6; do
    [[ $o = "$m" ]] && continue
    ip -n "$ns" route replace "$o4" via "$oip"
    [[ -z $o6 ]] || ip -n "$ns" -6 route replace "$o6" via "$oip6"
  done < "$ranges"
  ip netns exec "$ns" nft -f - <<T
table inet klab {
chain post {
  type nat hook postrouting priority srcnat + 5;
  ip saddr $all4 ip daddr != $all4 oifname "eth0" masquerade
  ip6 saddr $all6 ip6 daddr != $all6 oifname "eth0" masquerade
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
done < "$ranges"
while read -r _ oip o4 _ _; do ip -n "$(netns "$c-cp")" route replace "$o4" via "$oip"; done < "$ranges"
