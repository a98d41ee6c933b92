#!/usr/bin/env bash
# Runs one seed of the simulated cluster again and tells what happens in it: scripts/sim.sh SEED
set -euo pipefail
SEED="${1:?usage: scripts/sim.sh SEED}"
cd "$(dirname "$0")/.."
. scripts/env.sh
export SEED
exec cargo test --release --locked -p drover-sim --test cluster one_seed -- --exact --nocapture
