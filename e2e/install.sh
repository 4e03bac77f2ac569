#!/usr/bin/env bash
# Installs the shipped chart into the current cluster, or upgrades it, and waits until it is ready. The images are those
# loaded last: Deployments are restarted when their image was rebuilt under the same tag. usage: install.sh [HELM ARGUMENTS...]
set -euo pipefail
. "$(dirname "$0")/cluster/lib.sh"
export KUBECONFIG=${KUBECONFIG:-$KUBECONFIG_FILE}
PATH=$BIN:$PATH
begin=$SECONDS
existed=$(kubectl -n weft-system get deploy weft-operator --ignore-not-found -o name)
helm upgrade --install weft "$here/../../charts/weft" -n weft-system --create-namespace --set profile=one-node --wait --timeout 3m "$@" >/dev/null
if [ -n "$existed" ]; then
  kubectl -n weft-system rollout restart deploy >/dev/null
fi
for part in operator webhook; do
  kubectl -n weft-system rollout status deploy/weft-$part --timeout=120s >/dev/null
done
say "Weft is installed after $((SECONDS - begin)) s"
