#!/usr/bin/env bash
# Starts two clusters side by side, runs the tests of two federated meshes on them, and ends both (KEEP=1 leaves them). Clusters
# that run already are left alone. usage: federation.sh [ARGUMENTS OF THE TESTS...]
set -euo pipefail
cd "$(dirname "$0")/.."
. e2e/cluster/lib.sh
unset KUBECONFIG
begin=$SECONDS
pair=(federation-a federation-b)
end() { for name in "${pair[@]}"; do CLUSTER=$name bash e2e/cluster/down.sh; done; }
[ -n "${KEEP:-}" ] || trap end EXIT
for name in "${pair[@]}"; do
  CLUSTER=$name bash e2e/cluster/up.sh
  CLUSTER=$name bash e2e/cluster/load-images.sh "$IMAGES"/*.tar
done
say "both clusters run after $((SECONDS - begin)) s"
WEFT_FEDERATION=$CACHE/cluster/${pair[0]}/kubeconfig:$CACHE/cluster/${pair[1]}/kubeconfig \
  cargo test --workspace --test federation -- --test-threads=1 --nocapture "$@"
say "all of it has taken $((SECONDS - begin)) s"
