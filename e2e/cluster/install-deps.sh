#!/usr/bin/env bash
# Installs Debian's packages that are missing; does nothing where they are all there, needs root otherwise.
# usage: install-deps.sh [cluster|suites|bench|fips]    with `cluster` also what a Kubernetes on this machine is made of, with `suites`
#                                                   the servers and clients that e2e/suites runs, with `bench` Weft's peers
set -euo pipefail
. "$(dirname "$0")/lib.sh"

# command or file : package
wanted="cc:gcc /usr/include/stdlib.h:libc6-dev make:make git:git /etc/ssl/certs/ca-certificates.crt:ca-certificates
  curl:curl openssl:openssl busybox:busybox-static python3:python3 jq:jq shellcheck:shellcheck ip:iproute2 nft:nftables"
# Images are made by Docker where its daemon answers.
docker info >/dev/null 2>&1 || wanted+=" buildah:buildah"
if [ "${1:-}" = cluster ]; then
  wanted+=" etcd:etcd-server containerd:containerd runc:runc /usr/lib/cni/ptp:containernetworking-plugins iptables:iptables
    nsenter:util-linux sysctl:procps flock:util-linux"
fi
if [ "${1:-}" = suites ]; then
  wanted+=" nginx:nginx-light redis-server:redis-server redis-benchmark:redis-tools /usr/bin/psql:postgresql-client
    /usr/lib/postgresql/*/bin/initdb:postgresql /usr/lib/postgresql/*/bin/pgbench:postgresql mariadbd:mariadb-server mariadb:mariadb-client
    /usr/lib/python3/dist-packages/aiosmtpd:python3-aiosmtpd swaks:swaks h2load:nghttp2-client wrk:wrk runuser:util-linux"
fi
if [ "${1:-}" = bench ]; then
  wanted+=" nginx:nginx-light /usr/lib/nginx/modules/ngx_stream_module.so:libnginx-mod-stream haproxy:haproxy
    /usr/lib/python3*/ensurepip:python3-venv perf:linux-perf"
fi
if [ "${1:-}" = fips ]; then
  wanted+=" cmake:cmake g++:g++"
fi

missing=()
for pair in $wanted; do
  what=${pair%%:*}
  compgen -G "$what" >/dev/null || command -v "$what" >/dev/null || missing+=("${pair#*:}")
done
if ((${#missing[@]})); then
  command -v apt-get >/dev/null || die "please install: ${missing[*]}"
  [ "$(id -u)" = 0 ] || die "run as root, or install: ${missing[*]}"
  say "installing ${missing[*]}"
  # Packages bring services (etcd, containerd); the cluster runs its own, so those are not started.
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq || say "apt-get update failed; going on with the lists that are there"
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
command -v go >/dev/null || die "Go is missing (1.26 or newer): https://go.dev/dl"
command -v cargo >/dev/null || die "Rust is missing: https://rustup.rs"
