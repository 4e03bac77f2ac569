#!/usr/bin/env python3
"""Writes an OCI image archive FROM scratch: `oci_image.py OUT.tar NAME:TAG [--entrypoint /a,b] [--user UID] SOURCE:/target ...`.

Reproducible: same files, same archive. For the cluster's own images, where neither Docker nor buildah need be there.
"""
import argparse
import hashlib
import io
import json
import os
import tarfile


def entry(archive, name, data=None, mode=0o755, link=None):
    info = tarfile.TarInfo(name.lstrip("/"))
    info.mode, info.mtime = mode, 0
    if link is not None:
        info.type, info.linkname = tarfile.SYMTYPE, link
        archive.addfile(info)
    elif data is None:
        info.type = tarfile.DIRTYPE
        archive.addfile(info)
    else:
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))


def layer(files):
    buffer, made = io.BytesIO(), set()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for pair in files:
            source, target = pair.split(":", 1)
            parts = target.strip("/").split("/")[:-1]
            for depth in range(1, len(parts) + 1):
                folder = "/".join(parts[:depth])
                if folder not in made:
                    made.add(folder)
                    entry(archive, folder)
            if source.startswith("@"):
                entry(archive, target, link=source[1:])
            elif source == "DIR":
                made.add(target.strip("/"))
                entry(archive, target, mode=0o1777)
            else:
                with open(source, "rb") as file:
                    entry(archive, target, file.read(), mode=0o755 if os.access(source, os.X_OK) else 0o644)
    return buffer.getvalue()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("name")
    parser.add_argument("--entrypoint", default="")
    parser.add_argument("--user", default="")
    parser.add_argument("files", nargs="+", help="SOURCE:/target, @link:/target or DIR:/target")
    args = parser.parse_intermixed_args()

    def digest(data):
        return "sha256:" + hashlib.sha256(data).hexdigest()

    content = layer(args.files)
    oci = "application/vnd.oci.image"
    settings = {"User": args.user, "Env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin"]}
    if args.entrypoint:
        settings["Entrypoint"] = args.entrypoint.split(",")
    config = json.dumps({
        "architecture": "amd64", "os": "linux", "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [digest(content)]},
    }).encode()
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": f"{oci}.manifest.v1+json",
        "config": {"mediaType": f"{oci}.config.v1+json", "digest": digest(config), "size": len(config)},
        "layers": [{"mediaType": f"{oci}.layer.v1.tar", "digest": digest(content), "size": len(content)}],
    }).encode()
    index = json.dumps({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": f"{oci}.manifest.v1+json", "digest": digest(manifest), "size": len(manifest),
            "annotations": {"io.containerd.image.name": args.name, "org.opencontainers.image.ref.name": args.name.rsplit(":", 1)[-1]},
            "platform": {"architecture": "amd64", "os": "linux"},
        }],
    }).encode()
    with tarfile.open(args.out + ".part", "w") as archive:
        entry(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}', 0o644)
        entry(archive, "index.json", index, 0o644)
        for blob in (content, config, manifest):
            entry(archive, "blobs/sha256/" + digest(blob)[7:], blob, 0o644)
    os.replace(args.out + ".part", args.out)


if __name__ == "__main__":
    main()
