#!/usr/bin/env bash
# Installs the Debian packages that building, the demo and the tests need; with the word `bench` also what only the
# benchmarks need. Does nothing where they are there.
set -euo pipefail

packages=(
    gcc g++ libc6-dev                    # Rust links by it; RocksDB
    clang libclang-dev cmake pkg-config  # RocksDB and its bindings
    iproute2 e2fsprogs fio libnbd-bin    # the demo
    nbdkit qemu-utils jq procps          # tests and benchmarks: other people's NBD clients and servers
)
if [ "${1:-}" = bench ] && ! command -v qemu-storage-daemon > /dev/null; then
    packages+=(qemu-system-common) # Debian 12 has qemu-storage-daemon in it; later releases in qemu-utils
fi
if [ "${1:-}" = bench ]; then
    packages+=(borgbackup) # what an archiver makes of the same image
fi

if ! command -v cargo > /dev/null; then
    echo "Rust is missing: install it from https://rustup.rs, then run this again." >&2
    exit 1
fi
if ! command -v dpkg-query > /dev/null; then
    echo "This is not Debian. Please see to it that these, or your system's like, are installed: ${packages[*]}" >&2
    exit 0
fi

missing=()
for package in "${packages[@]}"; do
    if [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2> /dev/null)" != installed ]; then
        missing+=("$package")
    fi
done
if [ ${#missing[@]} -eq 0 ]; then
    exit 0
fi

echo "installing: ${missing[*]}"
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo > /dev/null; then
        echo "Not root and no sudo. Please have this run: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    as_root=(sudo)
fi
# An index that cannot be refreshed may still name the packages.
"${as_root[@]}" apt-get update -q || echo "the package index could not be refreshed; going on with the one there is"
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
