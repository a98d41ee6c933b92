# Sourced by the other scripts and the Makefile: where built things live, outside the clone.
# DROVER_CACHE overrides the place.
export DROVER_CACHE="${DROVER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/drover}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$DROVER_CACHE/target}"

# RocksDB takes some ten minutes to build. Its static library is kept once a machine, keyed by the
# version of librocksdb-sys and its features, and later builds only link it.
drover_repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
drover_rocksdb_version="$(awk '/^name = "librocksdb-sys"/{getline; gsub(/"/, "", $3); print $3}' "$drover_repo/Cargo.lock")"
drover_rocksdb_dir="$DROVER_CACHE/rocksdb/$drover_rocksdb_version-lz4"
if [ -f "$drover_rocksdb_dir/librocksdb.a" ]; then
    export ROCKSDB_LIB_DIR="$drover_rocksdb_dir" ROCKSDB_STATIC=1
fi
