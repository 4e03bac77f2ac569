#!/usr/bin/env bash
# Makes the images of the test application and of an outsider client (Debian's curl, openssl and busybox) under the cache.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../cluster/lib.sh"
app=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$IMAGES" "$BIN"
(cd "$app" && CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w" -o "$BIN/testapp" .)
python3 "$here/oci_image.py" "$IMAGES/testapp.tar" localhost/weft-testapp:dev --entrypoint /testapp "$BIN/testapp:/testapp"

# A dynamically linked program needs its libraries at the same paths, and the loader.
files=("$(command -v busybox):/bin/busybox" DIR:/tmp)
for applet in $(busybox --list); do
  case $applet in busybox | curl | openssl) ;; *) files+=("@busybox:/bin/$applet") ;; esac
done
declare -A seen
for program in curl openssl; do
  path=$(command -v $program)
  files+=("$path:/bin/$program")
  while read -r library; do
    [ -n "${seen[$library]:-}" ] || files+=("$library:$library")
    seen[$library]=1
  done < <(ldd "$path" | grep -o '/[^ ]*')
done
python3 "$here/oci_image.py" "$IMAGES/curl.tar" localhost/weft-curl:dev --entrypoint /bin/busybox,sleep,86400 "${files[@]}"
say "test application and curl images are ready"
