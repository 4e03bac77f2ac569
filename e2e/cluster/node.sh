#!/usr/bin/env bash
# The first process of a node: runs inside pid, mount, network, uts and ipc namespaces of its own, started by up.sh.
# Everything of the node is a child of it, so that killing it ends all. A part that ends is started again. usage: node.sh FOLDER
set -euo pipefail
. "$(dirname "$0")/lib.sh"
dir=$1 pki=$STATE/pki
# shellcheck source=/dev/null
. "$dir/env"
unset HTTP_PROXY HTTPS_PROXY ALL_PROXY http_proxy https_proxy all_proxy
hostname "$NODE"

mount --make-rshared / # kubelet and containerd need shared propagation
mount -t tmpfs tmpfs /run
for folder in log lib/kubelet lib/containerd lib/cni; do
  mkdir -p "/var/$folder"
  mount --bind "$dir/var/$folder" "/var/$folder"
done

# kubelet sets these for the whole machine. It gets files to write instead, and the machine stays as it is.
mkdir /run/sysctl
for name in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
  [ -e "/proc/sys/$name" ] || continue
  cat "/proc/sys/$name" >"/run/sysctl/${name//\//.}"
  mount --bind "/run/sysctl/${name//\//.}" "/proc/sys/$name"
done

# Folders of CNI that belong to this node alone, because tests put a plugin there.
mkdir -p /run/cni/{bin,net.d}
ln -s /usr/lib/cni/* /run/cni/bin/
cp "$dir"/cni/* /run/cni/net.d/

until [ -e "$dir/wired" ]; do sleep 0.02; done

keep() { # NAME COMMAND...
  local name=$1
  shift
  while :; do
    "$@" >>"$dir/log/$name.log" 2>&1 || true
    echo "--- $name ended; starting it again" >>"$dir/log/$name.log"
    sleep 0.5
  done &
}

if [ "$ROLE" = control-plane ]; then
  keep etcd etcd --data-dir "$dir/etcd" --unsafe-no-fsync --log-level warn \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 --initial-cluster default=http://127.0.0.1:2380
  keep kube-apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 --advertise-address="$NODE_IP" --bind-address=:: --secure-port=6443 \
    --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" --client-ca-file="$pki/ca.crt" \
    --kubelet-client-certificate="$pki/kubelet-client.crt" --kubelet-client-key="$pki/kubelet-client.key" --kubelet-preferred-address-types=InternalIP \
    --service-account-key-file="$pki/sa.pub" --service-account-signing-key-file="$pki/sa.key" --service-account-issuer=https://kubernetes.default.svc.cluster.local \
    --service-cluster-ip-range="$SERVICES" --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
    --requestheader-client-ca-file="$pki/ca.crt" --requestheader-allowed-names=front-proxy --requestheader-username-headers=X-Remote-User \
    --requestheader-group-headers=X-Remote-Group --requestheader-extra-headers-prefix=X-Remote-Extra- \
    --proxy-client-cert-file="$pki/front-proxy.crt" --proxy-client-key-file="$pki/front-proxy.key" --feature-gates="$GATES" \
    --runtime-config=certificates.k8s.io/v1beta1/clustertrustbundles=true,certificates.k8s.io/v1beta1/podcertificaterequests=true
fi
keep containerd containerd --config "$dir/containerd.toml"
await 60 "containerd's start" ctr version
for image in "$IMAGES"/system/*.tar "$IMAGES"/*.tar; do
  [ ! -e "$image" ] || ctr -n k8s.io images import "$image" >>"$dir/log/images.log" 2>&1 || true
done
await 60 "the API server's start" env KUBECONFIG="$pki/$NODE.conf" "$BIN/kubectl" get --raw /readyz
if [ "$ROLE" = control-plane ]; then
  keep controller-manager kube-controller-manager --kubeconfig="$pki/controller-manager.conf" --service-account-private-key-file="$pki/sa.key" \
    --root-ca-file="$pki/ca.crt" --use-service-account-credentials=true --leader-elect=false --bind-address=127.0.0.1 --cluster-name="$NAME" \
    --cluster-signing-cert-file="$pki/ca.crt" --cluster-signing-key-file="$pki/ca.key" --kube-api-qps=300 --kube-api-burst=600 \
    --feature-gates="$GATES"
  keep scheduler kube-scheduler --kubeconfig="$pki/scheduler.conf" --leader-elect=false --bind-address=127.0.0.1
fi
keep kubelet kubelet --config="$dir/kubelet.yaml" --kubeconfig="$pki/$NODE.conf" --hostname-override="$NODE" --node-ip="$NODE_IP,$NODE_IP6" --root-dir=/var/lib/kubelet
keep kube-proxy kube-proxy --config="$dir/kube-proxy.yaml"
while :; do wait; done # as pid 1 it also reaps what is orphaned
