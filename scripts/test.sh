#!/usr/bin/env bash
# Everything CI runs, each suite within its time budget. Ends with one line: N passed, N failed.
set -uo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
export DROVER_BIN="$CARGO_TARGET_DIR/release/drover"

logs="$CARGO_TARGET_DIR/test-logs"
rm -rf "$logs"
mkdir -p "$logs"
passed=0
failed=0

count() { # LOG WORD — sum of the numbers before WORD in the results of the tests
    grep -aE '^test result:' "$1" | grep -oE "[0-9]+ $2" | awk '{n += $1} END {print n + 0}'
}

# suite NAME BUDGET_S COMMAND... — runs it; counts its tests, or itself as one check where it has none.
suite() {
    local name="$1" budget="$2" begin=$SECONDS log="$logs/$1.log" status good bad
    shift 2
    timeout --kill-after=10 "$budget" "$@" > "$log" 2>&1 < /dev/null
    status=$?
    good=$(count "$log" passed)
    bad=$(count "$log" failed)
    if [ "$status" -ne 0 ] && [ "$bad" -eq 0 ]; then
        bad=1 # not a test failed, but the build, the budget, or the program crashed
    elif [ "$status" -eq 0 ] && [ $((good + bad)) -eq 0 ]; then
        good=1
    fi
    passed=$((passed + good))
    failed=$((failed + bad))
    printf '%-20s %5d passed %3d failed %6d s of %d\n' "$name" "$good" "$bad" $((SECONDS - begin)) "$budget"
    if [ "$bad" -ne 0 ]; then
        [ "$status" -ne 124 ] || echo "    its time budget ran out"
        if grep -qaE '^---- .* ----$' "$log"; then
            # Each failed test with how it began, and what it said at last: it may have printed much in between.
            awk '/^---- .* ----$/ {left = 15} /panicked at/ && left < 15 {left = 15} left-- > 0' "$log" \
                | head -n 300 | sed 's/^/    /'
        else
            grep -aE '^error' "$log" | head -n 10 | sed 's/^/    /'
            tail -n 25 "$log" | sed 's/^/    /'
        fi
    fi
}

# Builds test programs; their list is left in $logs/NAME.list as "package<TAB>folder<TAB>program".
build() { # NAME BUDGET_S CARGO-ARGS...
    local name="$1" budget="$2"
    shift 2
    suite "$name" "$budget" bash -c '
        set -o pipefail
        out="$1"; shift
        cargo test --release --locked --no-run --message-format=json-render-diagnostics "$@" > "$out.json" &&
        jq -r "select(.profile.test == true and .executable != null)
               | [(.manifest_path | split(\"/\")[-2]), (.manifest_path | rtrimstr(\"/Cargo.toml\")), .executable] | @tsv" \
            "$out.json" | sort > "$out.list"' build "$logs/$name" "$@"
}

# Runs the test programs of a list, all of them, and fails if one of them does. A folder names a package. FILTER
# chooses tests by name; a program that has it in its own name runs whole.
run_programs() { # LIST FILTER only|except FOLDER...
    local list="$1" filter="$2" mode="$3" status=0 package folder program listed
    shift 3
    [ -s "$list" ] || { echo "error: nothing was built"; return 1; }
    while IFS=$'\t' read -r package folder program; do
        listed=except
        [[ " $* " != *" $package "* ]] || listed=only
        [ "$listed" = "$mode" ] || continue
        echo "== $package: $program"
        if [[ -n "$filter" && "${program##*/}" != *"$filter"* ]]; then
            (cd "$folder" && CARGO_MANIFEST_DIR="$folder" "$program" "$filter") || status=1
        else
            (cd "$folder" && CARGO_MANIFEST_DIR="$folder" "$program") || status=1
        fi
    done < "$list"
    return "$status"
}
export -f run_programs

programs() { # NAME BUDGET_S LIST FILTER only|except FOLDER...
    local name="$1" budget="$2"
    shift 2
    suite "$name" "$budget" bash -c 'run_programs "$@"' run "$logs/$1.list" "${@:2}"
}

# Packages with tests that plant bugs.
planted=(drover-store drover-transfer drover-node drover-control drover-sim drover-crash)

suite format 60 cargo fmt --all --check
suite shell 60 bash -c 'for script in scripts/*.sh .ci/run; do bash -n "$script" || exit 1; done'
suite clippy 1200 cargo clippy --release --locked --workspace --all-targets -- -D warnings
build build 2400 --workspace
programs unit 900 build "" except sim crash interop e2e
programs sim 900 build "" only sim
programs crash 600 build "" only crash
# Interop and e2e use them where they can be built, which takes Debian's source archive.
timeout 180 scripts/libnbd-tests.sh > "$logs/libnbd-tests.log" 2>&1 ||
    echo "libnbd's aio-parallel and synch-parallel are not run, they could not be built: $(tail -n 1 "$logs/libnbd-tests.log")"
programs interop 600 build "" only interop
programs e2e 1200 build "" only e2e
# Every planted bug must be caught: these tests fail where one is not.
build planted-build 1200 --features planted "${planted[@]/#/-p=}"
programs planted 900 planted-build planted except none

echo "$passed passed, $failed failed" | tee "$logs/summary"
[ "$failed" -eq 0 ]
