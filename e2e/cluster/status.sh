#!/usr/bin/env bash
# Tells whether the cluster runs, and what is in it. usage: [CLUSTER=name] status.sh
set -euo pipefail
. "$(dirname "$0")/lib.sh"
others=$(cd "$CACHE/cluster" 2>/dev/null && for number in */number; do if [ -e "$number" ]; then echo -n " ${number%/number}"; fi; done)
nodes_live || die "cluster $NAME does not run; start it with 'make cluster-up'. On this machine:${others:- none}"
echo "KUBECONFIG=$KUBECONFIG_FILE"
echo "logs: $STATE/nodes/*/log   inside a node: bash $here/enter.sh   clusters:$others"
kubectl get nodes -o wide
kubectl get pods -A
