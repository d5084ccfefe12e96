#!/usr/bin/env bash
# Fuzzes every parser of files that others may have made, with libFuzzer and AddressSanitizer.
#
#   scripts/fuzz.sh [SECONDS [TARGET...]]     20 seconds for each of the targets in fuzz/fuzz_targets, unless told
#
# Begins with fuzz/seeds (made by scripts/make-fuzz-seeds.py), the fixtures of the tests, and what an earlier run found, which
# stays in target/fuzz/corpus. A file that fails is left in target/fuzz/failures, and named.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CARGO_FUZZ=0.13.2
seconds=${1:-20}
targets=("${@:2}")
if [ ${#targets[@]} -eq 0 ]; then
    for file in fuzz/fuzz_targets/*.rs; do
        targets+=("$(basename "$file" .rs)")
    done
fi

tools=$PWD/target/tools
export PATH=$tools/bin:$PATH
if [ "$(cargo fuzz --version 2>/dev/null)" != "cargo-fuzz $CARGO_FUZZ" ]; then
    cargo install --quiet --locked --root "$tools" cargo-fuzz --version "$CARGO_FUZZ"
fi

# Sanitizers are an unstable option of the stable compiler. No kernel is needed to parse a file.
export RUSTC_BOOTSTRAP=1 RETUNE_CUDA_ARCHS=none
host=$(rustc -vV | sed -n 's/^host: //p')
(cd fuzz && cargo fuzz build --sanitizer address --codegen-units 16 --target-dir ../target/fuzz)

failed=0
for target in "${targets[@]}"; do
    corpus=target/fuzz/corpus/$target
    failures=target/fuzz/failures/$target
    mkdir -p "$corpus" "$failures"
    begin=("$corpus")
    [ -d "fuzz/seeds/$target" ] && begin+=("fuzz/seeds/$target")
    case $target in
    pth) begin+=(tests/fixtures/pth) ;;
    picture)
        # Pictures of a few thousand bytes; what is made of them for comparison is none.
        mkdir -p target/fuzz/pictures
        find tests/fixtures/pillow -type f -size -8k ! -name '*-*.png' ! -name '*.json' ! -name '*.f32' \
            -exec cp -t target/fuzz/pictures {} +
        begin+=(target/fuzz/pictures)
        ;;
    esac
    log=target/fuzz/$target.log
    # A picture may unpack to half a gigabyte.
    if "target/fuzz/$host/release/$target" -max_total_time="$seconds" -timeout=30 -rss_limit_mb=4096 \
        -print_final_stats=1 -artifact_prefix="$failures/" "${begin[@]}" >"$log" 2>&1; then
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        covered=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
        printf '%-12s %s s, %s files, %s places of the code reached\n' "$target" "$seconds" "$runs" "$covered"
    else
        failed=1
        printf '%-12s FAILED: %s\n' "$target" "$log"
        grep -E 'panicked at|ERROR:|Test unit written' -A 1 "$log" | head -n 12
    fi
done
exit "$failed"
