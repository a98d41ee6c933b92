#!/usr/bin/env bash
# The randomised suites for as long as one likes: DROVER_SOAK tells the tests to multiply their rounds.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
export DROVER_BIN="$CARGO_TARGET_DIR/release/drover" DROVER_SOAK="${DROVER_SOAK:-20}"
# Seconds for each target of tests/fuzz.
export DROVER_FUZZ_S="${DROVER_FUZZ_S:-600}"
cargo build --release --locked -p drover
exec cargo test --release --locked --no-fail-fast -p drover-sim -p drover-crash -p drover-control -p drover-fuzz -p drover-e2e
