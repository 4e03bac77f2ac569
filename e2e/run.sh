#!/usr/bin/env bash
# Runs the end-to-end tests against the installed mesh: first those that may run side by side (the attacks too), then the
# disruptive ones one by one (and the weft command's, whose verdict on a mesh needs it at rest),
# and uninstalling last.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo test --workspace --test mesh -- --test-threads="${E2E_THREADS:-4}"
cargo test --workspace --test attacks -- --test-threads="${E2E_THREADS:-4}"
for suite in command disruption cni uninstall; do
  cargo test --workspace --test $suite -- --test-threads=1
done
# Weft is gone now: the chart once more, as its users handle it.
bash e2e/chart-check.sh
