# Everything is built with the one release profile, in a cache outside the clone (scripts/env.sh).
SHELL := /bin/bash
.PHONY: build demo test bench soak setup clean-cache

# What a first build needs: Debian packages, RocksDB's library. Both say what they do and skip what is there.
setup:
	@scripts/setup.sh >&2
	@scripts/rocksdb.sh >&2

build: setup
	@. scripts/env.sh && cargo build --release --locked -p drover >&2 \
		&& echo "built $$CARGO_TARGET_DIR/release/drover; to have it on the path: export PATH=$$CARGO_TARGET_DIR/release:\$$PATH" >&2

# DEMO_ARGS='--output json' prints one JSON object and nothing else on standard output.
demo: build
	@. scripts/env.sh && exec "$$CARGO_TARGET_DIR/release/drover" demo $(DEMO_ARGS)

# Ends with a line "N passed, N failed".
test: setup
	@scripts/test.sh

# CASE=nbd or CASE=migrate for one of them; results also as JSON lines in $DROVER_BENCH_OUT. BENCH_ARGS='--rounds 1' for
# a short look, BENCH_ARGS='--part live' for a part of a case (tmpfs, disk, snapshot; cold, live, flips).
bench: build
	@scripts/setup.sh bench >&2
	@scripts/bench.sh $(CASE) $(BENCH_ARGS)

# The long versions of the randomised suites; hours.
soak: setup
	@scripts/soak.sh

clean-cache:
	@. scripts/env.sh && rm -rf "$$DROVER_CACHE" && echo "removed $$DROVER_CACHE"
