#!/usr/bin/env bash
# Makes the images that the cluster itself needs (sandbox, CoreDNS) under the cache; up.sh imports them.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
mkdir -p "$IMAGES/system"
(cd "$here/pause" && CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w" -o "$BIN/pause" .)
python3 "$here/oci_image.py" "$IMAGES/system/pause.tar" localhost/weft-pause:dev --entrypoint /pause "$BIN/pause:/pause"
python3 "$here/oci_image.py" "$IMAGES/system/coredns.tar" localhost/coredns:dev --entrypoint /coredns "$BIN/coredns:/coredns"
