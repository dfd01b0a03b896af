#!/bin/sh
# A base image from Debian's packages, for machines that reach no registry: docker/base.sh NAME [package …]
# Needs root, debootstrap and a Debian mirror; about two minutes.
set -eu
name=$1
shift
rootfs=$(mktemp -d)
trap 'rm -rf "$rootfs"' EXIT
packages=$(IFS=,; echo "ca-certificates,python3,python3-venv${*:+,$*}")
debootstrap --variant=minbase --include="$packages" bookworm "$rootfs" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}"
tar --create --directory "$rootfs" --exclude './var/cache/apt/*' --exclude './var/lib/apt/lists/*' \
  --exclude './usr/share/doc/*' --exclude './usr/share/man/*' --exclude './usr/share/locale/*' . |
  docker import --change 'ENV LANG=C.UTF-8' - "$name"
