#!/usr/bin/env bash
# Fuzzes every parser of files from other sources, with libFuzzer and AddressSanitizer.
#
#   scripts/fuzz.sh [SECONDS [TARGET...]]     20 seconds for each target in fuzz/fuzz_targets by default, one on each core
#
# Starts from fuzz/seeds (written by scripts/make-fuzz-seeds.py), the fixtures of the tests, and the corpus of earlier runs in
# target/fuzz/corpus. A file that causes a failure is named and kept in target/fuzz/failures.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seconds=${1:-20}
targets=("${@:2}")
if [ ${#targets[@]} -eq 0 ]; then
    for file in fuzz/fuzz_targets/*.rs; do
        targets+=("$(basename "$file" .rs)")
    done
fi

# Sanitizers are an unstable option of the compiler. Parsing needs no kernels. The C code that decodes JPEGs is checked, too.
export RUSTC_BOOTSTRAP=1 RUSTC_WRAPPER=$PWD/fuzz/instrument.sh
export RETUNE_CUDA_ARCHS=none CFLAGS="-fsanitize=address ${CFLAGS:-}"
host=$(rustc -vV | sed -n 's/^host: //p')
# With a target, build scripts are compiled apart.
cargo build --release --quiet --manifest-path fuzz/Cargo.toml --target "$host" --target-dir target/fuzz

fuzz() {
    local target=$1 corpus failures begin log runs covered
    corpus=target/fuzz/corpus/$target
    failures=target/fuzz/failures/$target
    mkdir -p "$corpus" "$failures"
    begin=("$corpus")
    [ -d "fuzz/seeds/$target" ] && begin+=("fuzz/seeds/$target")
    case $target in
    pth) begin+=(tests/fixtures/pth) ;;
    image)
        # Small images only; the expected results beside them are not images.
        mkdir -p target/fuzz/images
        find tests/fixtures/pillow -type f -size -8k ! -name '*-*.png' ! -name '*.json' ! -name '*.f32' \
            -exec cp -t target/fuzz/images {} +
        begin+=(target/fuzz/images target/fuzz/cases)
        python3 - <<'UNPACK'
import pathlib
import zipfile

folder = pathlib.Path("target/fuzz/cases")
folder.mkdir(exist_ok=True)
for name in ("jpeg", "images"):
    archive = zipfile.ZipFile(f"tests/fixtures/{name}.zip")
    files, place = archive.read("files"), 0
    for number, line in enumerate(archive.read("names").decode().splitlines()):
        length = int(line.split()[0])
        (folder / f"{name}-{number}").write_bytes(files[place : place + length])
        place += length
UNPACK
        ;;
    esac
    log=target/fuzz/$target.log
    # An image may decode to half a gigabyte.
    if "target/fuzz/$host/release/$target" -max_total_time="$seconds" -timeout=30 -rss_limit_mb=4096 \
        -print_final_stats=1 -artifact_prefix="$failures/" "${begin[@]}" >"$log" 2>&1; then
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        covered=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
        printf '%-12s %s s, %s files, %s locations of the code reached\n' "$target" "$seconds" "$runs" "$covered"
    else
        printf '%-12s FAILED: %s\n' "$target" "$log"
        grep -E 'panicked at|ERROR:|Test unit written' -A 1 "$log" | head -n 12
        return 1
    fi
}

# A target uses one core.
failed=0 running=0
for target in "${targets[@]}"; do
    if [ "$running" -ge "$(nproc)" ]; then
        wait -n || failed=1
        running=$((running - 1))
    fi
    fuzz "$target" &
    running=$((running + 1))
done
for ((; running > 0; running--)); do
    wait -n || failed=1
done
exit "$failed"
