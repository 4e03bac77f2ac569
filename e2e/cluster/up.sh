#!/usr/bin/env bash
# Starts a real Kubernetes on this machine and waits until it serves. Does nothing when it runs already; what a dead one left is
# removed first, and so is one that other versions of these scripts have started. usage: [CLUSTER=name] [NODES=n] up.sh
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$here/cgroups.sh"
. "$here/network.sh"
. "$here/pki.sh"
. "$here/config.sh"
[ "$(id -u)" = 0 ] || die "a cluster of our own needs root; on a workstation use 'make kind-up' (Docker and kind)"
bash "$here/install-deps.sh" cluster
lock
made_by=$(cat "$here"/{lib,up,node,config,network,pki,cgroups}.sh "$here/base.yaml" | sha256sum)
if [ "$(cat "$STATE/ready" 2>/dev/null)" = "$made_by" ] && nodes_live && kubectl --request-timeout=5s get --raw /readyz >/dev/null 2>&1; then
  say "the cluster runs already; KUBECONFIG=$KUBECONFIG_FILE"
  exit 0
fi
bash "$here/build.sh"
bash "$here/images.sh"
bash "$here/down.sh" --locked >/dev/null
begin=$SECONDS

mkdir -p "$STATE/nodes"
taken=$(cat "$CACHE"/cluster/*/number 2>/dev/null || true)
for c in 0 1 2 3; do
  grep -qx $c <<<"$taken" || { echo $c >"$STATE/number"; break; }
done
[ -e "$STATE/number" ] || die "four clusters run already"

start_node() { # NUMBER
  local node=node$1 dir=$STATE/nodes/node$1 unshared pid
  configure_node "$1"
  make_cgroups "$node"
  setsid unshare --net --mount --pid --fork --mount-proc --uts --ipc env CLUSTER="$NAME" WEFT_CACHE="$CACHE" bash "$here/node.sh" "$dir" \
    >"$dir/log/node.log" 2>&1 </dev/null 9>&- &
  unshared=$!
  until pid=$(cat "/proc/$unshared/task/$unshared/children" 2>/dev/null) && pid=${pid// /} && [ -n "$pid" ]; do
    [ -d "/proc/$unshared" ] || die "$node did not start: $(cat "$dir/log/node.log")"
    sleep 0.02
  done
  until [ "$(readlink "/proc/$pid/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.02; done
  remember "$pid" "$dir/pid"
  wire_node "$1" "$pid"
  touch "$dir/wired"
}

nodes_ready() { [ "$(kubectl get nodes --no-headers | awk '$2 == "Ready"' | wc -l)" = "$NODES" ]; }

say "starting Kubernetes $KUBERNETES_VERSION with $NODES node(s)"
make_pki
make_lan
for ((i = 0; i < NODES; i++)); do start_node $i; done
route
await 90 "the API server's start" kubectl --request-timeout=2s get --raw /readyz
say "API server answers after $((SECONDS - begin)) s"
sed "s/DNS_IP/$(dns_ip "$(number)")/" "$here/base.yaml" | kubectl apply -f - >/dev/null
await 90 "the nodes' readiness" nodes_ready
await 90 "CoreDNS" kubectl -n kube-system rollout status deploy/coredns --timeout=1s
await 30 "the default ServiceAccount" kubectl get serviceaccount default
echo "$made_by" >"$STATE/ready"
say "the cluster is ready after $((SECONDS - begin)) s; KUBECONFIG=$KUBECONFIG_FILE"
