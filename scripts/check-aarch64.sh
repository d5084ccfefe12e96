#!/usr/bin/env bash
# Builds the crate for 64-bit ARM Linux. If qemu-aarch64 is installed (Debian: qemu-user), also runs it: gradcheck on
# every fixture, a short training run, and the tests of the library, of the CPU's kernels and of JPEG. Arguments replace the list
# of tests.
#
# Needs a linker (Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross) and the target's standard library, from rustup or
# from a toolchain that CARGO and RUSTC name. tests/cli.rs is excluded because it starts programs directly, without qemu.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=aarch64-unknown-linux-gnu
export CARGO=${CARGO:-cargo} RUSTC=${RUSTC:-rustc}
linker=${CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER:-aarch64-linux-gnu-gcc}
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$linker
# Other scripts check the CUDA kernels.
export RETUNE_CUDA_ARCHS=none
# Property tests run few cases, because each is emulated.
export PROPTEST_CASES=${PROPTEST_CASES:-16}

fail() {
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit 1
}

has_standard_library() {
    local folder
    folder=$("$RUSTC" --print target-libdir --target "$target")
    compgen -G "$folder/libstd-*" >/dev/null
}

command -v "$linker" >/dev/null ||
    fail "no linker $linker" "it is in Debian's gcc-aarch64-linux-gnu; CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER names another"
if ! has_standard_library && command -v rustup >/dev/null; then
    rustup target add "$target" || true
fi
has_standard_library ||
    fail "$RUSTC has no standard library for $target" "rustup target add $target, or name a toolchain that has it in CARGO and RUSTC"

"$CARGO" build --release --target "$target"

qemu=$(command -v qemu-aarch64 || command -v qemu-aarch64-static || true)
if [ -z "$qemu" ]; then
    echo "built for $target; NOT RUN: qemu-aarch64 is not installed (Debian: qemu-user)"
    exit 0
fi
export QEMU_LD_PREFIX=${QEMU_LD_PREFIX:-/usr/aarch64-linux-gnu}
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=$qemu

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

retune() {
    "$CARGO" run --release --quiet --target "$target" -- --device cpu "$@"
}

for file in tests/fixtures/*.safetensors; do
    printf '%s: ' "$(basename "$file")"
    retune gradcheck "$file" >"$scratch/rows" || { cat "$scratch/rows"; exit 1; }
    tail -n 1 "$scratch/rows"
done

retune demo --only-draw --source-per-class 2 --target-per-class 20 --out "$scratch/drawn"
images=$scratch/drawn/pictures/target
recipe=(--from-scratch --width 8 --image-size 64 --batch-size 16 --lr 2e-3 --quiet)
retune train "$images" "${recipe[@]}" --epochs 2 --out "$scratch/run"
retune predict "$scratch/run/model.safetensors" "$images/test/hotdog/0000.jpg"

tests=("$@")
if [ ${#tests[@]} -eq 0 ]; then
    tests=(conv2d batch_norm max_pool avg_pool linear cross_entropy mix sgd jpeg)
fi
options=()
for test in "${tests[@]}"; do
    options+=(--test "$test")
done
"$CARGO" test --release --target "$target" --lib "${options[@]}"
echo "built for $target; all checks passed under $(basename "$qemu")"
