#!/bin/sh
# Makes a root and a certificate for each service, in ./certificates. Its SPIFFE id is who a service is. For trying things
# out: a real root's key is not kept beside what it signs.
set -eu
cd "$(dirname "$0")"
mkdir -p certificates
cd certificates
test -f root.key || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
  -subj "/CN=weft example root" -addext "basicConstraints=critical,CA:true" -addext "keyUsage=critical,keyCertSign" \
  -keyout root.key -out root.crt
for name in front back; do
  mkdir -p "$name"
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/" -keyout "$name/tls.key" -out "$name/tls.csr"
  printf '%s\n' "subjectAltName=critical,URI:spiffe://cluster.local/ns/shop/sa/$name" \
    "extendedKeyUsage=serverAuth,clientAuth" "basicConstraints=critical,CA:false" >"$name/extensions"
  openssl x509 -req -in "$name/tls.csr" -CA root.crt -CAkey root.key -CAcreateserial -days 30 \
    -extfile "$name/extensions" -out "$name/tls.new"
  # Last, so that a proxy that looks meanwhile never sees a certificate without its key.
  cp root.crt "$name/roots.pem"
  mv "$name/tls.new" "$name/tls.crt"
  rm "$name/tls.csr" "$name/extensions"
done
