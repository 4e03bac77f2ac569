#!/usr/bin/env bash
# Installs the chart as users do, and holds it to its promises on a real cluster without Weft: `helm test` passes, upgrading
# to the same version changes no object, uninstalling leaves exactly what was there before, and crds.keep keeps. The images
# must be loaded. usage: [KUBECONFIG=...] chart-check.sh
set -euo pipefail
. "$(dirname "$0")/cluster/lib.sh"
export KUBECONFIG=${KUBECONFIG:-$KUBECONFIG_FILE}
PATH=$BIN:$PATH
chart=$here/../../charts/weft
release=weft-system # namespace of the release
member="chart-check" # a namespace in the mesh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Every object of every kind, by name. Events are a log of what was; Endpoints mirror EndpointSlices.
objects() {
  local kinds
  kinds=$(kubectl api-resources --verbs=list -o name | grep -vE '^(events|componentstatuses|endpoints$)' | paste -sd,)
  kubectl get "$kinds" -A --ignore-not-found -o 'custom-columns=K:.kind,NS:.metadata.namespace,N:.metadata.name' --no-headers |
    tr -s ' ' | sort
}

# Every object of the release, with its version: any write at all changes that.
versions() {
  helm get manifest weft -n $release | kubectl get -n $release -f - --no-headers \
    -o 'custom-columns=K:.kind,NS:.metadata.namespace,N:.metadata.name,V:.metadata.resourceVersion' | tr -s ' ' | sort
}

same() { # WHAT BEFORE AFTER
  diff -u "$2" "$3" >"$work/difference" || { cat "$work/difference" >&2; die "$1"; }
}

# Waits until a command's output is that of a file. usage: settle SECONDS WHAT FILE COMMAND...
settle() {
  local deadline=$((SECONDS + $1)) what=$2 wanted=$3
  shift 3
  while true; do
    "$@" >"$work/now"
    cmp -s "$wanted" "$work/now" && return
    ((SECONDS < deadline)) || same "$what" "$wanted" "$work/now"
    sleep 1
  done
}

install() { helm install weft "$chart" -n $release --wait --timeout 3m "$@" >/dev/null; }
uninstall() { helm uninstall weft -n $release --wait --timeout 4m >/dev/null; }
mirrored() { kubectl get namespace $member -o jsonpath='{.metadata.labels}' | grep -q inject-by-annotation; }
bundled() { kubectl -n $member get configmap weft-trust-bundle; }
at_rest() { ! kubectl get namespaces -o jsonpath='{.items[*].status.phase}' | grep -q Terminating; }
clean_up() { kubectl delete namespace $member $release --ignore-not-found >/dev/null; }

kubectl get customresourcedefinition,mutatingwebhookconfiguration -o name | grep -q weft && die "Weft, or a part of it, is there already"
clean_up
await 180 "the end of namespaces that earlier tests deleted" at_rest
kubectl create namespace $release >/dev/null
kubectl create namespace $member >/dev/null
await 30 "the default objects of a namespace" kubectl -n $member get serviceaccount/default configmap/kube-root-ca.crt
await 30 "the default objects of a namespace" kubectl -n $release get serviceaccount/default configmap/kube-root-ca.crt
objects >"$work/before"

begin=$SECONDS
install
say "installed and ready after $((SECONDS - begin)) s"
kubectl annotate namespace $member weft.dev/inject=enabled >/dev/null
await 20 "the mirror label" mirrored
await 20 "the trust bundle" bundled
helm test weft -n $release --timeout 2m >/dev/null || { kubectl -n $release logs weft-test >&2; die "helm test failed"; }
say "helm test passes"

versions >"$work/installed"
helm upgrade weft "$chart" -n $release --wait --timeout 3m >/dev/null
versions >"$work/upgraded"
same "an upgrade to the same version wrote to objects" "$work/installed" "$work/upgraded"
helm test weft -n $release --timeout 2m >/dev/null
say "an upgrade to the same version changes none of $(wc -l <"$work/installed") objects"

uninstall
settle 60 "uninstalling left something, or took too much" "$work/before" objects
mirrored && die "the mirror label is left on namespace $member"
say "uninstalling leaves exactly what was there before"

install --set profile=one-node --set crds.keep=true
kubectl -n $member create service clusterip back --tcp=80 >/dev/null
cat >"$work/back.yaml" <<'YAML'
apiVersion: weft.dev/v1alpha1
kind: MeshService
metadata: {name: back}
spec: {target: {service: back}}
YAML
# The webhook is ready, but nodes may not know yet where it is.
await 20 "the webhook to take a resource" kubectl -n $member apply -f "$work/back.yaml"
uninstall
kubectl -n $member get meshservice back >/dev/null || die "crds.keep=true did not keep the resources"
# What was kept is taken over by the next installation, and goes with it.
install --set profile=one-node
kubectl -n $member get meshservice back >/dev/null || die "the next installation lost the resources"
uninstall
kubectl -n $member delete service back >/dev/null
settle 60 "uninstalling left something after crds.keep" "$work/before" objects
say "crds.keep keeps definitions and resources; the next installation takes them over"
clean_up
