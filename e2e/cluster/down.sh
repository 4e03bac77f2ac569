#!/usr/bin/env bash
# Ends a cluster and removes all of it: processes, mounts, links, routes, cgroups, files. usage: [CLUSTER=name] down.sh
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$here/cgroups.sh"
. "$here/network.sh"
[ "${1:-}" = --locked ] || lock # up.sh holds it when it clears away a dead cluster
[ -d "$STATE" ] || { say "there is no cluster $NAME"; exit 0; }

for dir in "$STATE"/nodes/*; do
  if pid=$(pid_of "$dir/pid"); then
    kill -9 "$pid" # pid 1 of its namespace: the kernel ends everything in it, with its mounts and links
    await 20 "the end of ${dir##*/}" test ! -d "/proc/$pid"
  fi
  if [ -d "$dir" ]; then remove_cgroups "${dir##*/}"; fi
done
if [ -e "$STATE/number" ]; then unroute; fi
rm -rf --one-file-system "$STATE"
if ! ls "$CACHE"/cluster/*/number >/dev/null 2>&1; then remove_lan; fi
say "the cluster is gone"
