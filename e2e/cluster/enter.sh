#!/usr/bin/env bash
# Runs a command inside a node, to look (tcpdump, nft, ctr) or to break things. usage: [CLUSTER=name] [NODE=node0] enter.sh [COMMAND...]
set -euo pipefail
. "$(dirname "$0")/lib.sh"
[ $# -gt 0 ] || set -- bash
in_node "$@"
