#!/usr/bin/env bash
# Builds RocksDB's static library once a machine and keeps it in the cache.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh

if [ -f "$drover_rocksdb_dir/librocksdb.a" ]; then
    exit 0
fi
echo "building RocksDB once for this machine (about 12 minutes on two cores) ..."
CARGO_TARGET_DIR="$DROVER_CACHE/rocksdb/build" cargo build --release --locked -p librocksdb-sys
library="$(find "$DROVER_CACHE/rocksdb/build" -name librocksdb.a | head -n 1)"
mkdir -p "$drover_rocksdb_dir"
cp "$library" "$drover_rocksdb_dir/librocksdb.a.new"
mv "$drover_rocksdb_dir/librocksdb.a.new" "$drover_rocksdb_dir/librocksdb.a"
rm -rf "$DROVER_CACHE/rocksdb/build"
