#!/usr/bin/env bash
# Builds Kubernetes' own programs, CoreDNS and helm from their Go modules (a go.mod of `tool` lines each, beside this file)
# into the cache, once per version. The version is stamped in: helm's kubeVersion check and kubectl's skew check read it.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
mkdir -p "$BIN"
export CGO_ENABLED=0

build() { # NAME FILE-THAT-PROVES-IT FLAGS...
  local name=$1 proof=$2
  shift 2
  [ -x "$BIN/$proof" ] && return
  say "building $name (once; minutes from a cold cache)"
  local begin=$SECONDS
  (cd "$here/$name" && go build -trimpath -buildvcs=false "$@")
  say "built $name in $((SECONDS - begin)) s"
}

stamp="-s -w"
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
  stamp+=" -X $package.gitVersion=v$KUBERNETES_VERSION -X $package.gitMajor=1 -X $package.gitMinor=$(cut -d. -f2 <<<"$KUBERNETES_VERSION")"
  stamp+=" -X $package.gitTreeState=clean -X $package.gitCommit=unknown -X $package.buildDate=1970-01-01T00:00:00Z"
done
build kube kube-proxy -ldflags "$stamp" -o "$BIN/" tool
build coredns coredns -ldflags "-s -w" -o "$BIN/coredns" .
build helm helm -ldflags "-s -w" -o "$BIN/" helm.sh/helm/v3/cmd/helm
