# Shared by the cluster's scripts: versions, folders, addresses, small verbs. Sourced, never run; changes nothing by itself.
# shellcheck shell=bash
# shellcheck disable=SC2034

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# The one place for the versions of the cluster's parts. etcd, containerd, runc and the CNI plugins are Debian's.
KUBERNETES_VERSION=1.36.3
COREDNS_VERSION=1.15.0
HELM_VERSION=3.22.0

# Off by default in Kubernetes: trust bundles of the cluster, certificates that the kubelet asks for, and both as volumes.
GATES=ClusterTrustBundle=true,ClusterTrustBundleProjection=true,PodCertificateRequest=true

CACHE=${WEFT_CACHE:-$HOME/.cache/weft}
BIN=$CACHE/bin/k$KUBERNETES_VERSION-c$COREDNS_VERSION-h$HELM_VERSION
IMAGES=$CACHE/images
NAME=${CLUSTER:-weft}
NODES=${NODES:-1}
STATE=$CACHE/cluster/$NAME
LAN=$CACHE/cluster/.lan # what all clusters of this user share: one namespace with a bridge
KUBECONFIG_FILE=$STATE/kubeconfig
export PATH=$BIN:$PATH:/usr/sbin:/sbin

# Each cluster has a small number, $1 below; each of its nodes too, $2, from 0. They decide all addresses.
LAN_NET=10.250.0.0/16 LAN_IP=10.250.255.1 LAN_IP6=fd0a:250::ff:1
HOST_IP=10.250.255.2 HOST_IP6=fd0a:250::ff:2 HOST_LINK=weft-host
node_ip() { echo "10.250.$1.$((10 + $2))"; }
node_ip6() { echo "fd0a:250::$1:$((10 + $2))"; }
pods_of() { echo "10.$((244 + $1)).$2.0/24"; }
pods_of6() { echo "fd0a:$((244 + $1)):0:$2::/64"; }
all_pods() { echo "10.$((244 + $1)).0.0/16"; }
all_pods6() { echo "fd0a:$((244 + $1))::/48"; }
services() { echo "10.$((96 + $1)).0.0/16"; }
services6() { echo "fd0a:$((96 + $1))::/112"; }
dns_ip() { echo "10.$((96 + $1)).0.10"; }
number() { cat "$STATE/number"; }
node_names() { for ((i = 0; i < NODES; i++)); do echo "node$i"; done; }

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Runs a command until it succeeds. usage: await SECONDS WHAT COMMAND...
await() {
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || die "$what did not happen in time; see the logs under $STATE/nodes/*/log"
    sleep 0.1
  done
}

# One script at a time changes clusters. What runs on in the background must not inherit the lock: `9>&-`.
lock() {
  mkdir -p "$CACHE/cluster"
  exec 9>"$CACHE/cluster/.lock"
  flock -n 9 || { say "waiting for another cluster command to end"; flock 9; }
}

# A process is remembered by its number and its start time: numbers are given to others again.
start_time() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20; }
remember() { echo "$1 $(start_time "$1")" >"$2"; }
pid_of() { # FILE
  local pid start
  read -r pid start 2>/dev/null <"$1" || return 1
  [ -n "$start" ] && [ "$(start_time "$pid")" = "$start" ] && echo "$pid"
} 2>/dev/null

# The pid (as the host sees it) of a node's first process, when it runs.
node_pid() { pid_of "$STATE/nodes/${1:-node0}/pid"; }

# Do all nodes of the cluster run?
nodes_live() {
  local node count=0
  for node in "$STATE"/nodes/*; do
    node_pid "${node##*/}" >/dev/null || return 1
    count=$((count + 1))
  done
  ((count > 0))
}

# Runs a command inside the namespaces of node0, or of the node that $NODE names.
in_node() {
  local pid
  pid=$(node_pid "${NODE:-node0}") || die "no cluster runs; start one with 'make cluster-up'"
  nsenter -t "$pid" -m -n -p -u -i env -C / PATH="$PATH" KUBECONFIG="$KUBECONFIG_FILE" "$@"
}

kubectl() { "$BIN/kubectl" --kubeconfig "$KUBECONFIG_FILE" "$@"; }
