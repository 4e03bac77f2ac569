#!/usr/bin/env bash
# Builds the controller of cert-manager (main.go beside this file) from its Go module into the cache, once per version, with the
# definitions of its resources from the same module. Prints the folder that holds both. usage: build.sh
set -euo pipefail
cd "$(dirname "$0")"
. ../lib.sh
module=$(go list -m -f '{{.Version}}' github.com/cert-manager/cert-manager)
into=$CACHE/tools/cert-manager-$module-$(sha256sum main.go go.sum | sha256sum | cut -c 1-8)
if [ ! -x "$into/cert-manager" ]; then
  say "building cert-manager $module (once; minutes from a cold cache)"
  begin=$SECONDS
  mkdir -p "$into"
  CGO_ENABLED=0 nice -n 5 go build -trimpath -buildvcs=false -ldflags "-s -w" -o "$into/.new" .
  sources=$(go list -m -f '{{.Dir}}' github.com/cert-manager/cert-manager)
  cat "$sources"/deploy/crds/cert-manager.io_*.yaml >"$into/crds.yaml"
  mv "$into/.new" "$into/cert-manager"
  say "built cert-manager in $((SECONDS - begin)) s"
fi
echo "$into"
