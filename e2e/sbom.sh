#!/usr/bin/env bash
# What is in each program, as CycloneDX 1.5 in JSON, one file a program; fails when one is missing or lacks what everything is
# built on. usage: sbom.sh CARGO_CYCLONEDX FOLDER
set -euo pipefail
tool=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd)
cd "$(dirname "$0")/.."
# It writes beside each Cargo.toml; the features are those of the release.
"$tool" cyclonedx --quiet --format json --spec-version 1.5 --describe crate --all --target all
for part in operator webhook proxy cli; do
  written=$part/weft-$part.cdx.json
  mv "$written" "$folder/"
  for crate in rustls aws-lc-rs tokio; do
    grep -q "\"name\": \"$crate\"" "$folder/weft-$part.cdx.json" || {
      echo "$folder/weft-$part.cdx.json does not name $crate" >&2
      exit 1
    }
  done
  echo "$folder/weft-$part.cdx.json: $(grep -c '"purl"' "$folder/weft-$part.cdx.json") components"
done
find . -path ./target -prune -o -name '*.cdx.json' -not -path './target/*' -exec rm {} +
