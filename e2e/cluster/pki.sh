# Certificates and kubeconfigs of the cluster, made anew at each start, under $STATE/pki. Sourced by up.sh.
# shellcheck shell=bash

key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; }

leaf() { # NAME SUBJECT EXTENSIONS
  key "$1"
  openssl req -new -key "$1.key" -subj "$2" -out "$1.csr"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -out "$1.crt" \
    -extfile <(printf 'keyUsage=digitalSignature\n%s\n' "$3") 2>/dev/null
  rm "$1.csr"
}

kubeconfig() { # NAME SUBJECT
  leaf "$1" "$2" extendedKeyUsage=clientAuth
  cat >"$1.conf" <<YAML
apiVersion: v1
kind: Config
clusters: [{name: $NAME, cluster: {server: "https://$(node_ip "$(number)" 0):6443", certificate-authority-data: $(base64 -w0 ca.crt)}}]
users: [{name: $NAME-$1, user: {client-certificate-data: $(base64 -w0 "$1.crt"), client-key-data: $(base64 -w0 "$1.key")}}]
contexts: [{name: $NAME, context: {cluster: $NAME, user: $NAME-$1}}]
current-context: $NAME
YAML
}

make_pki() (
  local c node
  c=$(number)
  umask 077
  mkdir -p "$STATE/pki"
  cd "$STATE/pki" || exit
  key ca
  openssl req -x509 -new -key ca.key -subj "/CN=weft-test-cluster-$NAME" -days 3650 -out ca.crt 2>/dev/null
  leaf apiserver /CN=kube-apiserver "extendedKeyUsage=serverAuth
subjectAltName=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,DNS:localhost,\
IP:127.0.0.1,IP:10.$((96 + c)).0.1,IP:$(node_ip "$c" 0),IP:$(node_ip6 "$c" 0)"
  leaf kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client extendedKeyUsage=clientAuth
  leaf front-proxy /CN=front-proxy extendedKeyUsage=clientAuth
  kubeconfig admin /O=system:masters/CN=admin
  kubeconfig controller-manager /CN=system:kube-controller-manager
  kubeconfig scheduler /CN=system:kube-scheduler
  kubeconfig proxy /CN=system:kube-proxy
  for node in $(node_names); do kubeconfig "$node" "/O=system:nodes/CN=system:node:$node"; done
  openssl genrsa -out sa.key 2048 2>/dev/null
  openssl rsa -in sa.key -pubout -out sa.pub 2>/dev/null
  cp admin.conf "$KUBECONFIG_FILE"
)
