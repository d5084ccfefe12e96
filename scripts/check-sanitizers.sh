#!/usr/bin/env bash
# Runs the kernel tests on an emulator that is compiled, with the kernels, with AddressSanitizer and
# UndefinedBehaviorSanitizer. Also tests the JPEG decoder without vector instructions. Builds in CARGO_TARGET_DIR, or in
# target/sanitizers, which leaves the normal build untouched. Arguments replace the list of tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tests=("$@")
if [ ${#tests[@]} -eq 0 ]; then
    for operation in conv2d batch_norm max_pool avg_pool linear cross_entropy mix sgd; do
        if [ -e "tests/$operation.rs" ]; then
            tests+=("$operation")
        fi
    done
fi
options=()
for test in "${tests[@]}"; do
    options+=(--test "$test")
done

# Speed does not matter here, neither of the emulator nor of the program around it.
export RETUNE_EMULATOR_FLAGS="-O1 -fsanitize=address,undefined -fno-sanitize-recover=all"
# The runtime must be loaded before the C library, but Rust links it later. Its leak detector reports Rust's statics.
host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
export "CARGO_TARGET_${host}_RUNNER=env LD_PRELOAD=$("${CXX:-g++}" -print-file-name=libasan.so)"
export ASAN_OPTIONS=detect_leaks=0
export UBSAN_OPTIONS=print_stacktrace=1
# Property tests run few cases, because each needs at least one launch.
export PROPTEST_CASES=${PROPTEST_CASES:-16}
export RETUNE_CUDA_ARCHS=none
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target/sanitizers}

# As this needs a build of its own anyway, it also tests what a build without nasm has: the JPEG decoder in plain C.
build=(--release --no-default-features --features emulator --config 'profile.release.package.retune.opt-level=1')
cargo test "${build[@]}" --test emulator right_kernels
cargo test "${build[@]}" "${options[@]}" kernels_match
# The emulator's own checks of accesses do not work in an instrumented emulator.
cargo test "${build[@]}" --test augment kernel:: -- --skip edits_are_free_of_races
cargo test "${build[@]}" --test jpeg
