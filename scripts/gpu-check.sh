#!/usr/bin/env bash
# Answers the questions that wait for a GPU, or runs all checks that need one.
#
#     scripts/gpu-check.sh --prepare     on a machine with Rust and nvcc: builds the program and the kernel tests, and
#                                        collects them in target/gpu-check
#
# The others run on a machine with a GPU, without Rust, nvcc or a network:
#
#     scripts/gpu-check.sh [--seconds N] [--out FOLDER]
#                                        the questions of docs/gpu-queue.md from the top, for N seconds (540); writes the
#                                        answers to FOLDER (gpu-answers) and prints text for docs/gpu-results.md; see
#                                        scripts/gpu-queue.py
#     scripts/gpu-check.sh checks [FOLDER [PATTERN]]
#                                        all checks, or those whose names match the extended regular expression, in less
#                                        than ten minutes; writes logs and results.json to FOLDER (gpu-check-results)
#     scripts/gpu-check.sh probe [FOLDER]
#                                        the check `probe` alone: what an H100 or H200 does with bulk copies and wgmma
#     scripts/gpu-check.sh list [PATTERN]
#                                        prints names and commands of checks, and runs none; needs no GPU
#
# RETUNE_ROUNDS is the number of interleaved rounds of the comparison with PyTorch (3); RETUNE_CHECK_SECONDS is the time for
# the checks (590); RETUNE_SHARED is a folder whose ref/ holds more reference files. Needs the NVIDIA driver and Python 3, and
# compute-sanitizer and PyTorch for the checks that use them. A check that cannot run is reported as skipped, with the reason,
# and never as passed. The exit status is 1 if any check failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

prepared=target/gpu-check
tests=(avg_pool batch_norm conv2d conv2d_stem conv2d_tensor conv2d_weight_tensor cross_entropy linear max_pool mix sgd nesterov adamw
    accumulate augment plan recording)

needs_preparation() {
    echo "$prepared/retune does not exist; run scripts/gpu-check.sh --prepare on a machine with Rust and nvcc, and copy target/gpu-check" >&2
    exit 2
}

if [ "${1:-}" = --prepare ]; then
    set -e
    rm -rf "$prepared"
    mkdir -p "$prepared"
    cargo build --release
    cp target/release/retune "$prepared/retune"
    for test in "${tests[@]}"; do
        executable=$(cargo test --release --features emulator --no-run --test "$test" --message-format=json |
            python3 -c '
import json, sys
built = [line for line in map(json.loads, sys.stdin) if line.get("executable")]
print(*(line["executable"] for line in built if line["target"]["name"] == sys.argv[1]))' "$test")
        cp "$executable" "$prepared/test-$test"
    done
    strip "$prepared"/*
    "$prepared/retune" devices
    git rev-parse HEAD >"$prepared/commit"
    git diff --quiet HEAD || echo "with uncommitted changes" >>"$prepared/commit"
    du -sh "$prepared"
    exit 0
fi

retune=$prepared/retune
[ "${1:-}" != probe ] || set -- checks "${2:-gpu-check-results}" '^probe$'
if [[ ${1:-} != checks && ${1:-} != list ]]; then
    [ -x "$retune" ] || needs_preparation
    exec python3 scripts/gpu-queue.py "$@"
fi
listing=
if [ "$1" = list ]; then
    listing=1
    chosen=${2:-.}
else
    [ -x "$retune" ] || needs_preparation
    results=${2:-gpu-check-results}
    chosen=${3:-.}
    mkdir -p "$results"
    : >"$results/checks.tsv"
fi
time_limit=${RETUNE_CHECK_SECONDS:-590}
started=$SECONDS

record() { # name, passed|failed|skipped, seconds, message
    printf '%s\t%s\t%s\t%s\n' "$@" >>"$results/checks.tsv"
    printf '%-8s %5ss  %s  %s\n' "$2" "$3" "$1" "${4:-}"
}

skip() {
    [[ $1 =~ $chosen ]] || return 0
    if [ -n "$listing" ]; then
        echo "$1"
    else
        record "$1" skipped 0 "$2"
    fi
}

check() { # name, limit in seconds, command...
    local name=$1 limit=$2 begun=$SECONDS left=$((time_limit - (SECONDS - started))) status
    shift 2
    [[ $name =~ $chosen ]] || return 0
    if [ -n "$listing" ]; then
        printf '%s\t%s\n' "$name" "${*@Q}"
        return
    fi
    if [ $left -lt 5 ]; then
        skip "$name" "no time left of $time_limit s"
        return
    fi
    limit=$((limit < left ? limit : left))
    timeout "$limit" "$@" >"$results/$name.log" 2>&1
    status=$?
    if [ $status = 0 ]; then
        record "$name" passed $((SECONDS - begun)) "$(tail -n 1 "$results/$name.log")"
    elif grep -q 'the file contradicts itself' "$results/$name.log"; then
        record "$name" skipped $((SECONDS - begun)) "the file contradicts itself"
    elif grep -q 'the probe runs on 9.0 only' "$results/$name.log"; then
        record "$name" skipped $((SECONDS - begun)) "another GPU than the probe is for"
    elif [ $status = 124 ]; then
        record "$name" failed $((SECONDS - begun)) "not finished after $limit s"
    else
        record "$name" failed $((SECONDS - begun)) "exit status $status: $(tail -n 1 "$results/$name.log")"
    fi
}

find_sanitizer() {
    local candidate
    for candidate in "$(command -v compute-sanitizer)" .cuda/bin/compute-sanitizer /usr/local/cuda*/bin/compute-sanitizer \
        /usr/local/cuda*/compute-sanitizer/compute-sanitizer; do
        [ -n "$candidate" ] && [ -x "$candidate" ] && echo "$candidate" && return
    done
}

check devices 60 "$retune" devices
check probe 20 "$retune" probe --device cuda:0 --out "${results:-}/probe.json"
[ -n "$listing" ] || nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv >"$results/gpu.csv" 2>&1 || true

for precision in fp32 tf32 bf16; do
    fixtures=(tests/fixtures/*.safetensors)
    # External reference files have no PyTorch errors in the other precisions, so there is no limit to compare with.
    [ $precision != fp32 ] || [ -z "${RETUNE_SHARED:-}" ] || fixtures+=("$RETUNE_SHARED"/ref/*.safetensors)
    for fixture in "${fixtures[@]}"; do
        name=$(basename "$fixture" .safetensors)
        check "gradcheck-$precision-$name" 60 "$retune" gradcheck "$fixture" --device cuda:0 --precision $precision
    done
done

# One after another, because processes that share a GPU wait for each other at every allocation and copy.
for test in "${tests[@]}"; do
    check "test-$test" 120 env RETUNE_TEST_CUDA=1 "$prepared/test-$test" --test-threads=8
done

for precision in fp32 tf32 bf16; do
    check "kernels-$precision" 60 "$retune" bench --kernels --device cuda:0 --precision $precision --batch-size 128 --json
    check "bench-$precision" 60 "$retune" bench --device cuda:0 --precision $precision --batch-size 128 --steps 30 --json
done

# The demo, which the README starts with.
drawn=$(mktemp -d)
trap 'rm -rf "$drawn"' EXIT
for precision in fp32 bf16; do
    check "demo-$precision" 120 "$retune" demo --device cuda:0 --precision $precision --out "$drawn/$precision" --json
done

# A repeated run and a resumed run must give the same bits.
resumed() { # precision
    local images=$drawn/fp32/pictures/target run=$drawn/resumed-$1
    local recipe=(--from-scratch --device cuda:0 --precision "$1" --batch-size 32 --no-report)
    "$retune" train "$images" "${recipe[@]}" --epochs 2 --out "$run" &&
        "$retune" train "$images" --resume --epochs 4 --no-report --out "$run" &&
        "$retune" train "$images" "${recipe[@]}" --epochs 4 --out "$run-whole" &&
        cmp "$run/checkpoint.safetensors" "$run-whole/checkpoint.safetensors" &&
        echo "the resumed and the uninterrupted run have the same checkpoint"
}
export retune drawn
export -f resumed
for precision in fp32 tf32 bf16; do
    check "determinism-$precision" 60 "$retune" train "$drawn/fp32/pictures/target" --from-scratch --device cuda:0 \
        --precision $precision --batch-size 32 --verify-determinism --out "$drawn/twice-$precision"
    check "resumed-$precision" 60 bash -c "resumed $precision"
done

if python3 -c 'import torch, torchvision; assert torch.cuda.is_available()' 2>/dev/null; then
    check pytorch 260 python3 -u scripts/bench-gpu-vs-pytorch.py --retune "$retune" --rounds "${RETUNE_ROUNDS:-3}" \
        --json "${results:-}/pytorch.json"
    [ -n "$listing" ] || [ ! -e "$results/pytorch.log" ] || cat "$results/pytorch.log"
else
    skip pytorch "PyTorch with CUDA is not installed"
fi

for precision in fp32 tf32 bf16; do
    check "bench-resnet50-$precision" 40 "$retune" bench --arch resnet50 --device cuda:0 --precision $precision \
        --batch-size 128 --steps 20 --json
    check "kernels-resnet50-$precision" 40 "$retune" bench --kernels --arch resnet50 --device cuda:0 \
        --precision $precision --batch-size 128 --json
done

sanitizer=$(find_sanitizer)
# In parallel, because the processor limits each of them.
for tool in memcheck racecheck synccheck initcheck; do
    for precision in fp32 tf32 bf16; do
        if [ -z "$sanitizer" ]; then
            skip "sanitizer-$tool-$precision" "compute-sanitizer is not installed"
        else
            check "sanitizer-$tool-$precision" 150 "$sanitizer" --tool $tool --error-exitcode 1 \
                "$retune" gradcheck tests/fixtures/tiny-image.safetensors --device cuda:0 --precision $precision &
        fi
    done
done
wait
[ -z "$listing" ] || exit 0

python3 - "$results" "$prepared" <<'PYTHON'
import csv, json, pathlib, sys

results, prepared = map(pathlib.Path, sys.argv[1:])
rows = list(csv.reader((results / "checks.tsv").open(), delimiter="\t", quoting=csv.QUOTE_NONE))
report = {
    "commit": (prepared / "commit").read_text().split("\n")[0],
    "gpu": (results / "gpu.csv").read_text().strip().splitlines()[-1:],
    "checks": [dict(zip(("name", "verdict", "seconds", "last_line"), row)) for row in rows],
}
for name in ("kernels", "bench", "kernels-resnet50", "bench-resnet50"):
    for precision in ("fp32", "tf32", "bf16"):
        try:
            report[f"{name}-{precision}"] = json.loads((results / f"{name}-{precision}.log").read_text().splitlines()[-1])
        except (OSError, ValueError, IndexError):
            pass
if (results / "pytorch.json").exists():
    report["pytorch"] = json.loads((results / "pytorch.json").read_text())
(results / "results.json").write_text(json.dumps(report, indent=1))
count = {verdict: sum(row[1] == verdict for row in rows) for verdict in ("passed", "failed", "skipped")}
print(f"\n{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped; {results}/results.json")
sys.exit(1 if count["failed"] else 0)
PYTHON
