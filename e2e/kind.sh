#!/usr/bin/env bash
# The same on kind, for people with Docker and without root. CI does not run this. usage: kind.sh up|down
set -euo pipefail
. "$(dirname "$0")/cluster/lib.sh"
STATE=$CACHE/cluster/kind KUBECONFIG_FILE=$CACHE/cluster/kind/kubeconfig # beside, not in the place of, a cluster of our own
command -v kind >/dev/null || die "kind is not installed: https://kind.sigs.k8s.io (go install sigs.k8s.io/kind@latest)"
case ${1:-} in
up)
  mkdir -p "$STATE"
  kind get clusters | grep -qx weft || kind create cluster --name weft --kubeconfig "$KUBECONFIG_FILE"
  say "now: export KUBECONFIG=$KUBECONFIG_FILE; then make demo, make e2e or make install use it"
  ;;
down) kind delete cluster --name weft --kubeconfig "$KUBECONFIG_FILE" ;;
*) die "usage: kind.sh up|down" ;;
esac
