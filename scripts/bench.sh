#!/usr/bin/env bash
# Runs the benchmarks: all, or the one case named. Results: a table, and JSON lines in $DROVER_BENCH_OUT.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
export DROVER_BIN="$CARGO_TARGET_DIR/release/drover"
export DROVER_BENCH_OUT="${DROVER_BENCH_OUT:-$DROVER_CACHE/bench}"
mkdir -p "$DROVER_BENCH_OUT"
exec cargo run --release --locked -q -p drover-benches -- "$@"
