# Writes the configuration of one node under $STATE/nodes/<name>: containerd, CNI, kubelet, kube-proxy, and the variables of node.sh.
# Sourced by up.sh.
# shellcheck shell=bash

configure_node() { # NUMBER
  local c node=node$1 dir=$STATE/nodes/node$1
  c=$(number)
  mkdir -p "$dir"/{cni,log,var/{log,lib/kubelet,lib/containerd,lib/cni}}
  : >"$dir/resolv.conf" # pods with dnsPolicy Default, CoreDNS that is, get no other resolver

  cat >"$dir/env" <<SH
NODE=$node
ROLE=$([ "$1" = 0 ] && echo control-plane || echo worker)
NODE_IP=$(node_ip "$c" "$1")
NODE_IP6=$(node_ip6 "$c" "$1")
SERVICES=$(services "$c"),$(services6 "$c")
SH

  # ptp rather than bridge: packets between pods are routed by the node, where kube-proxy's translation is undone on the way back; on
  # a bridge that needs the kernel module br_netfilter.
  cat >"$dir/cni/10-weft.conflist" <<JSON
{"cniVersion": "1.0.0", "name": "weft", "plugins": [
  {"type": "ptp", "ipMasq": false,
   "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam",
     "ranges": [[{"subnet": "$(pods_of "$c" "$1")"}], [{"subnet": "$(pods_of6 "$c" "$1")"}]],
     "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON

  # restrict_oom_score_adj: virtual machines may lack CAP_SYS_RESOURCE, and every pod would fail.
  if containerd --version | grep -Eq ' v?2\.'; then
    cat >"$dir/containerd.toml" <<TOML
version = 3
root = '/var/lib/containerd'
state = '/run/containerd'
[grpc]
  address = '/run/containerd/containerd.sock'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = 'localhost/weft-pause:dev'
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['/run/cni/bin']
    conf_dir = '/run/cni/net.d'
TOML
  else
    cat >"$dir/containerd.toml" <<TOML
version = 2
root = '/var/lib/containerd'
state = '/run/containerd'
[grpc]
  address = '/run/containerd/containerd.sock'
[plugins.'io.containerd.grpc.v1.cri']
  sandbox_image = 'localhost/weft-pause:dev'
  restrict_oom_score_adj = true
  [plugins.'io.containerd.grpc.v1.cri'.cni]
    bin_dir = '/run/cni/bin'
    conf_dir = '/run/cni/net.d'
TOML
  fi

  cat >"$dir/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $STATE/pki/ca.crt}}
authorization: {mode: Webhook}
clusterDNS: [$(dns_ip "$c")]
clusterDomain: cluster.local
cgroupDriver: cgroupfs
cgroupRoot: /$(cgroup_of "$node")
failCgroupV1: false
failSwapOn: false
serializeImagePulls: false
resolvConf: $dir/resolv.conf
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
evictionHard: {memory.available: 50Mi, nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%", imagefs.inodesFree: "0%"}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
volumePluginDir: $dir/volumeplugins
featureGates: {$(sed "s/=/: /g; s/,/, /g" <<<"$GATES")}
readOnlyPort: 0
syncFrequency: 10s
kubeAPIQPS: 200
kubeAPIBurst: 400
YAML

  # conntrack: its limit is the machine's, so it is left alone.
  cat >"$dir/kube-proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: ${PROXY_MODE:-nftables}
hostnameOverride: $node
clientConnection: {kubeconfig: $STATE/pki/proxy.conf}
clusterCIDR: $(all_pods "$c"),$(all_pods6 "$c")
conntrack: {maxPerCore: 0, min: 0}
YAML
}
