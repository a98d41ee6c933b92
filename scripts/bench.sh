#!/usr/bin/env bash
# Runs the benchmarks: all, or the one case named. Results: a table, and JSON lines in $DROVER_BENCH_OUT.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
export DROVER_BIN="$CARGO_TARGET_DIR/release/drover"
export DROVER_BENCH_OUT="${DROVER_BENCH_OUT:-$DROVER_CACHE/bench}"
mkdir -p "$DROVER_BENCH_OUT"
if [ "$(id -u)" -ne 0 ] && [ "${1:-}" != nbd ]; then
    echo "CASE=migrate needs root for its limited link (network namespaces); CASE=nbd does not." >&2
    exit 1
fi
# Beside the node, as `make build` does: by itself it would be built with other features of what both use.
cargo build --release --locked -q -p drover -p drover-benches
exec "$CARGO_TARGET_DIR/release/drover-bench" "$@"
