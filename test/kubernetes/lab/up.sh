#!/usr/bin/env bash
# Brings up a lab of real Kubernetes clusters on this machine. See README.md.
#   up.sh [-c CLUSTERS] [-n NODES] [options]
#     -c N            clusters (default 1)
#     -n M            nodes in each (default 0: control plane only)
#     --skip-cni      no CNI configuration: nodes stay NotReady until one comes
#     --skip-proxy    no kube-proxy
#     --proxy-mode M  nftables (default) or iptables
#     --mcs           install the MCS-API resource definitions
#     --dns           CoreDNS (also for clusterset.local with --mcs); wants nodes and a pod network
#     --dual          IPv4 and IPv6
#     --overlap       all clusters use the same pod and service ranges
#     --no-scheduler  leave kube-scheduler out
# Environment: LAB_DIR (default: a new temporary folder; not under /var, /run,
# /opt or /etc, which each machine replaces by its own), LAB_BIN,
# LAB_PORT_BASE (default 16440: cluster i's API server is at 127.0.0.1:16440+i).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
C=1 N=0 CNI=1 PROXY=1 MODE=nftables MCS=0 DNS=0 DUAL=0 SCHED=1
LAB_OVERLAP=${LAB_OVERLAP:-0}
while [[ $# -gt 0 ]]; do
  case $1 in
    -c) C=$2; shift ;;
    -n) N=$2; shift ;;
    --skip-cni) CNI=0 ;;
    --skip-proxy) PROXY=0 ;;
    --proxy-mode) MODE=$2; shift ;;
    --mcs) MCS=1 ;;
    --dns) DNS=1 ;;
    --dual) DUAL=1 ;;
    --overlap) LAB_OVERLAP=1 ;;
    --no-scheduler) SCHED=0 ;;
    -h|--help) sed -n '2,18p' "$0"; exit 0 ;;
    *) die "unknown option $1" ;;
  esac
  shift
done
[[ $(id -u) = 0 ]] || die "needs root (network and mount namespaces)"
for b in etcd kube-apiserver kube-controller-manager kube-scheduler kubectl labpki labfwd labcrds; do
  [[ -x $bin/$b ]] || die "$bin/$b is missing: run build.sh"
done
if [[ $N != 0 ]]; then
  for b in kubelet labecho labimage $([[ $PROXY = 0 ]] || echo kube-proxy) $([[ $DNS = 0 ]] || echo coredns); do [[ -x $bin/$b ]] || die "$bin/$b is missing: run build.sh"; done
  for b in containerd ctr runc; do command -v "$b" >/dev/null || die "$b is missing: apt-get install containerd runc containernetworking-plugins"; done
fi
LAB_DIR=$(readlink -f "${LAB_DIR:-$(mktemp -d -t klab.XXXXXX)}")
case $LAB_DIR in /var/*|/run/*|/opt/*|/etc/*) die "LAB_DIR must not lie under /var, /run, /opt or /etc" ;; esac
mkdir -p "$LAB_DIR"/{m,images}
[[ -f $LAB_DIR/lab.env ]] && die "$LAB_DIR already holds a lab: down.sh first"
LAB_ID=$(printf %s "$LAB_DIR" | sha256sum | cut -c1-4)
LAB_CLUSTERS=$C LAB_NODES=$N LAB_PORT_BASE=${LAB_PORT_BASE:-16440}
for v in LAB_ID LAB_CLUSTERS LAB_NODES LAB_PORT_BASE LAB_OVERLAP; do printf '%s=%s\n' "$v" "${!v}"; done > "$LAB_DIR/lab.env"
printf 'LAB_CNI=%s\nLAB_PROXY=%s\nLAB_MODE=%s\nLAB_DUAL=%s\n' $CNI $PROXY "$MODE" $DUAL >> "$LAB_DIR/lab.env"
mkdir -p "$(dirname "$last")" && echo "$LAB_DIR" > "$last"
t0=$(date +%s.%N); lap() { printf '%6.1fs  %s\n' "$(echo "$(date +%s.%N) $t0" | awk '{print $1-$2}')" "$*"; }
trap 'rc=$?; [[ $rc = 0 ]] || echo "up.sh failed; logs are in $LAB_DIR/m/*/log; down.sh removes what was made" >&2' EXIT

# --- underlay: one router namespace, a bridge (an L2 segment) for each cluster
U=$(netns u)
ip netns add "$U"
ip -n "$U" link set lo up
ip netns exec "$U" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
  net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0 2>/dev/null || true
for i in $(seq "$C"); do
  ip -n "$U" link add "br$i" type bridge
  ip -n "$U" addr add "$(under4 "$i" 1)/24" dev "br$i"
  ip -n "$U" addr add "$(under6 "$i" 1)/64" dev "br$i" nodad
  ip -n "$U" link set "br$i" up
done

# --- machines
# machine NAME CLUSTER# HOST#: its network namespace, its link to the bridge, its first process
machine() {
  local name=$1 i=$2 h=$3 d=$LAB_DIR/m/$1
  mkdir -p "$d"
  printf 'NAME=%s\nIP=%s\nCLUSTER=%s\nHOST=%s\n' "$name" "$(under4 "$i" "$h")" "$i" "$h" > "$d/env"
  wire "$name" "$i" "$h"
  boot "$name"
}

fwd=()
for i in $(seq "$C"); do
  c=c$i; k=$(cidr_i "$i")
  d=$LAB_DIR/m/$c-cp
  mkdir -p "$LAB_DIR/$c" "$d"
  args=(-dir "$LAB_DIR/$c" -cluster "$c" -cp-ip "$(under4 "$i" 2)" -cp-ip6 "$(under6 "$i" 2)"
        -svc-ip "$(svc4_n "$k" 1),$(svc6_n "$k" 1)" -host-port "$(hostport "$i")")
  for n in $(seq "$N"); do args+=(-node "$c-n$n=$(under4 "$i" $((10 + n))),$(under6 "$i" $((10 + n)))"); done
  "$bin/labpki" "${args[@]}"
  P=$LAB_DIR/$c/pki
  svc=$(svc4 "$k") pods=$(pod4 "$k") mask='--node-cidr-mask-size=24'
  if [[ $DUAL = 1 ]]; then
    svc+=,$(svc6 "$k") pods+=,$(pod6 "$k")
    mask='--node-cidr-mask-size-ipv4=24 --node-cidr-mask-size-ipv6=64'
  fi
  # without nodes, let made-up Node and Pod objects live: nothing renews their leases
  controllers='*'
  [[ $N != 0 ]] || controllers='*,-node-lifecycle-controller,-taint-eviction-controller,-pod-garbage-collector-controller'
  {
    printf 'run etcd %q --name=%s --data-dir=%q --listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379 --listen-peer-urls=http://127.0.0.1:2380 --initial-advertise-peer-urls=http://127.0.0.1:2380 --initial-cluster=%s=http://127.0.0.1:2380 --unsafe-no-fsync --log-level=warn --auto-compaction-retention=1h &\n' \
      "$bin/etcd" "$c" "$LAB_DIR/$c/etcd" "$c"
    printf 'run kube-apiserver %q --etcd-servers=http://127.0.0.1:2379 --bind-address=0.0.0.0 --secure-port=6443 --advertise-address=%s \
 --service-cluster-ip-range=%s --allow-privileged=true --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
 --client-ca-file=%q --tls-cert-file=%q --tls-private-key-file=%q \
 --kubelet-client-certificate=%q --kubelet-client-key=%q --kubelet-certificate-authority=%q --kubelet-preferred-address-types=InternalIP \
 --service-account-issuer=https://kubernetes.default.svc.cluster.local --service-account-key-file=%q --service-account-signing-key-file=%q \
 --requestheader-client-ca-file=%q --requestheader-allowed-names=front-proxy-client --requestheader-extra-headers-prefix=X-Remote-Extra- \
 --requestheader-group-headers=X-Remote-Group --requestheader-username-headers=X-Remote-User \
 --proxy-client-cert-file=%q --proxy-client-key-file=%q --enable-aggregator-routing=true --profiling=false &\n' \
      "$bin/kube-apiserver" "$(under4 "$i" 2)" "$svc" "$P/ca.crt" "$P/apiserver.crt" "$P/apiserver.key" \
      "$P/apiserver-kubelet-client.crt" "$P/apiserver-kubelet-client.key" "$P/ca.crt" "$P/sa.pub" "$P/sa.key" \
      "$P/front-proxy-ca.crt" "$P/front-proxy-client.crt" "$P/front-proxy-client.key"
    # the others end at once when they start before the API server has made their roles
    printf 'until %q --kubeconfig %q get --raw /readyz > /dev/null 2>&1; do sleep 0.1; done\n' "$bin/kubectl" "$LAB_DIR/$c/admin-inner.kubeconfig"
    printf 'run kube-controller-manager %q --kubeconfig=%q --authentication-kubeconfig=%q --authorization-kubeconfig=%q \
 --bind-address=127.0.0.1 --cluster-name=%s --leader-elect=false --use-service-account-credentials=true --controllers=%s \
 --service-account-private-key-file=%q --root-ca-file=%q --cluster-signing-cert-file=%q --cluster-signing-key-file=%q \
 --allocate-node-cidrs=true --cluster-cidr=%s --service-cluster-ip-range=%s %s --profiling=false &\n' \
      "$bin/kube-controller-manager" "$LAB_DIR/$c/kube-controller-manager.kubeconfig" "$LAB_DIR/$c/kube-controller-manager.kubeconfig" \
      "$LAB_DIR/$c/kube-controller-manager.kubeconfig" "$c" "$controllers" "$P/sa.key" "$P/ca.crt" "$P/ca.crt" "$P/ca.key" "$pods" "$svc" "$mask"
    if [[ $SCHED = 1 ]]; then
      printf 'run kube-scheduler %q --kubeconfig=%q --authentication-kubeconfig=%q --authorization-kubeconfig=%q --bind-address=127.0.0.1 --leader-elect=false --profiling=false &\n' \
        "$bin/kube-scheduler" "$LAB_DIR/$c/kube-scheduler.kubeconfig" "$LAB_DIR/$c/kube-scheduler.kubeconfig" "$LAB_DIR/$c/kube-scheduler.kubeconfig"
    fi
  } > "$d/procs.sh"
  machine "$c-cp" "$i" 2
  fwd+=("/run/netns/$(netns "$c-cp")=127.0.0.1:$(hostport "$i")=127.0.0.1:6443")
done
setsid "$bin/labfwd" "${fwd[@]}" < /dev/null > "$LAB_DIR/labfwd.log" 2>&1 &
echo $! > "$LAB_DIR/labfwd.pid"; awk '{print $22}' "/proc/$!/stat" > "$LAB_DIR/labfwd.start"
lap "control plane machines started"
for c in $(clusters); do
  for _ in $(seq 600); do
    [[ $(kc "$c" get --raw /readyz 2>/dev/null) = ok ]] && break; sleep 0.2
  done
  [[ $(kc "$c" get --raw /readyz) = ok ]] || die "$c: API server is not ready"
  lap "$c: API server ready"
  for _ in $(seq 300); do kc "$c" -n default get sa default > /dev/null 2>&1 && break; sleep 0.2; done
  lap "$c: controllers at work"
done
KUBECONFIG=$(for c in $(clusters); do printf '%s:' "$LAB_DIR/$c/admin.kubeconfig"; done) \
  "$bin/kubectl" config view --flatten > "$LAB_DIR/kubeconfig"
if [[ $MCS = 1 ]]; then
  for c in $(clusters); do
    "$bin/labcrds" | kc "$c" apply -f - > /dev/null
    kc "$c" wait --for=condition=Established --timeout=30s crd/serviceexports.multicluster.x-k8s.io crd/serviceimports.multicluster.x-k8s.io > /dev/null
  done
  lap "MCS-API installed"
fi
if [[ $N != 0 ]]; then
  # shellcheck source=nodes.sh
  . "$here/nodes.sh"
fi
lap "done"
echo "export LAB_DIR=$LAB_DIR    KUBECONFIG=$LAB_DIR/kubeconfig (contexts: $(clusters | tr '\n' ' '))"
