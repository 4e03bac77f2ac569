# The three images, FROM scratch, one static binary each. Taken by Docker and by buildah:
#   make build-static && docker build --target proxy -t ghcr.io/weft-mesh/weft-proxy:0.1.0 dist
# The build context is the folder with the static binaries, so that no toolchain is in any image or layer.
FROM scratch AS operator
COPY weft-operator /weft-operator
USER 65532:65532
ENTRYPOINT ["/weft-operator"]

FROM scratch AS webhook
COPY weft-webhook /weft-webhook
USER 65532:65532
ENTRYPOINT ["/weft-webhook"]

FROM scratch AS proxy
COPY weft-proxy /weft-proxy
USER 2102:2102
ENTRYPOINT ["/weft-proxy"]
