#!/usr/bin/env bash
# Builds the static binaries' images with buildah or Docker from the Dockerfile, as archives under the cache.
# usage: images.sh BINARIES-FOLDER. Prints each image's size.
set -euo pipefail
. "$(dirname "$0")/cluster/lib.sh"
binaries=$1
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/../../Cargo.toml" | head -n 1)
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
mkdir -p "$IMAGES"
cp "$binaries"/weft-{operator,webhook,proxy} "$here/../../Dockerfile" "$context/"

for part in operator webhook proxy; do
  name=ghcr.io/weft-mesh/weft-$part:$version
  archive=$IMAGES/weft-$part.tar
  rm -f "$archive.part"
  if command -v buildah >/dev/null; then
    store=(--storage-driver vfs --root "$context/store" --runroot "$context/run")
    buildah "${store[@]}" bud --isolation chroot --layers=false --target $part -t "$name" -f "$context/Dockerfile" "$context" >"$context/log" 2>&1 ||
      die "$name: $(tail -n 5 "$context/log")"
    # zstd: a quarter less to pull than gzip, and every runtime that can run native sidecars reads it.
    buildah "${store[@]}" push -q --compression-format zstd --compression-level 19 \
      "$name" "oci-archive:$archive.part:$name" >/dev/null
  else
    docker build -q --target $part -t "$name" "$context" >/dev/null
    docker save -o "$archive.part" "$name"
  fi
  mv "$archive.part" "$archive"
  say "$name $(stat -c %s "$archive" | awk '{printf "%.1f MiB", $1 / 1048576}')"
done
