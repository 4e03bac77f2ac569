#!/usr/bin/env bash
# Loads image archives into every node of the cluster: of our own one, or of a kind cluster when KIND names one or the kubeconfig
# is that of one. usage: load-images.sh ARCHIVE...
set -euo pipefail
. "$(dirname "$0")/lib.sh"
context=$("$BIN/kubectl" --kubeconfig "${KUBECONFIG:-$KUBECONFIG_FILE}" config current-context 2>/dev/null || true)
case $context in kind-*) KIND=${KIND:-${context#kind-}} ;; esac
for archive in "$@"; do
  if [ -n "${KIND:-}" ]; then
    kind load image-archive --name "$KIND" "$archive"
  else
    nodes_live || die "no cluster runs; start one with 'make cluster-up'"
    for node in "$STATE"/nodes/*; do NODE=${node##*/} in_node ctr -n k8s.io images import "$archive" >/dev/null; done
  fi
  say "loaded ${archive##*/}"
done
