# The wires. All clusters of this user share one LAN: a network namespace with a bridge, a cable to each node and one to the host.
# On the host that is the link weft-host with routes to nodes, pods and Services; nothing else is changed, and it vanishes with
# the LAN. Sourced by up.sh and down.sh.
# shellcheck shell=bash

in_lan() {
  local pid
  pid=$(pid_of "$LAN/pid") && nsenter -t "$pid" -n "$@"
}

make_lan() {
  local pid
  if pid_of "$LAN/pid" >/dev/null; then return; fi
  [ -z "$(ip route show root "$LAN_NET")" ] || die "$LAN_NET is in use on this machine: $(ip route show root "$LAN_NET" | head -n 1)"
  mkdir -p "$LAN"
  setsid unshare --net sleep infinity </dev/null >/dev/null 2>&1 9>&- &
  pid=$!
  until [ "$(readlink "/proc/$pid/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.02; done
  remember "$pid" "$LAN/pid"
  in_lan sh -ec "
    ip link set lo up
    ip link add lan0 type bridge
    ip addr add $LAN_IP/16 dev lan0
    ip -6 addr add $LAN_IP6/64 dev lan0 nodad
    ip link set lan0 up
    sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"
  ip link add "$HOST_LINK" type veth peer name host netns "$pid"
  in_lan ip link set host master lan0 up
  ip addr add "$HOST_IP/16" dev "$HOST_LINK"
  ip -6 addr add "$HOST_IP6/64" dev "$HOST_LINK" nodad 2>/dev/null || true # a machine without IPv6
  ip link set "$HOST_LINK" up
}

# Gives a node its cable and addresses. usage: wire_node NUMBER PID
wire_node() {
  local c link
  c=$(number)
  link=c$c-node$1
  in_lan ip link add "$link" type veth peer name eth0 netns "$2"
  in_lan ip link set "$link" master lan0 up
  nsenter -t "$2" -n sh -ec "
    ip link set lo up
    ip addr add $(node_ip "$c" "$1")/16 dev eth0
    ip -6 addr add $(node_ip6 "$c" "$1")/64 dev eth0 nodad
    ip link set eth0 up
    ip route add default via $LAN_IP
    ip -6 route add default via $LAN_IP6
    sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"
}

# The LAN forwards to the pods of all nodes, so that nodes and clusters reach each other's pods without translation. The host has the
# same routes, and one to the Services: kube-proxy of the first node translates them.
route() {
  local c i
  c=$(number)
  for ((i = 0; i < NODES; i++)); do
    in_lan ip route replace "$(pods_of "$c" $i)" via "$(node_ip "$c" $i)"
    in_lan ip -6 route replace "$(pods_of6 "$c" $i)" via "$(node_ip6 "$c" $i)"
    ip route replace "$(pods_of "$c" $i)" via "$(node_ip "$c" $i)"
    ip -6 route replace "$(pods_of6 "$c" $i)" via "$(node_ip6 "$c" $i)" 2>/dev/null || true
  done
  ip route replace "$(services "$c")" via "$(node_ip "$c" 0)"
  ip -6 route replace "$(services6 "$c")" via "$(node_ip6 "$c" 0)" 2>/dev/null || true
}

unroute() {
  local c net
  c=$(number)
  for net in $(all_pods "$c") $(services "$c"); do
    ip route flush root "$net" dev "$HOST_LINK" 2>/dev/null || true
    in_lan ip route flush root "$net" 2>/dev/null || true
  done
  for net in $(all_pods6 "$c") $(services6 "$c"); do
    ip -6 route flush root "$net" dev "$HOST_LINK" 2>/dev/null || true
    in_lan ip -6 route flush root "$net" 2>/dev/null || true
  done
}

remove_lan() {
  local pid
  if pid=$(pid_of "$LAN/pid"); then kill "$pid"; fi
  rm -rf "$LAN"
  ip link delete "$HOST_LINK" 2>/dev/null || true
}
