#!/usr/bin/env bash
# Runs the kernels' tests on the emulator with machine and kernels compiled by AddressSanitizer and
# UndefinedBehaviorSanitizer.
# Builds in target/sanitizers, so that the other build stays as it is. Arguments replace the list of tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tests=("$@")
if [ ${#tests[@]} -eq 0 ]; then
    for operation in conv2d batch_norm max_pool avg_pool linear cross_entropy sgd; do
        if [ -e "tests/$operation.rs" ]; then
            tests+=("$operation")
        fi
    done
fi
options=()
for test in "${tests[@]}"; do
    options+=(--test "$test")
done

# What the kernels compute is what matters here, not how fast the compiler makes it.
export RETUNE_EMULATOR_FLAGS="-O1 -fsanitize=address,undefined -fno-sanitize-recover=all"
# Rust links the runtime after the C library, but it has to be the first. Its leak detector does not know Rust's
# statics.
host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
export "CARGO_TARGET_${host}_RUNNER=env LD_PRELOAD=$("${CXX:-g++}" -print-file-name=libasan.so)"
export ASAN_OPTIONS=detect_leaks=0
export UBSAN_OPTIONS=print_stacktrace=1
# Each case of a property test is a launch or more.
export PROPTEST_CASES=${PROPTEST_CASES:-16}
export CARGO_TARGET_DIR=target/sanitizers

cargo test --release --features emulator --test emulator right_kernels
cargo test --release --features emulator "${options[@]}" kernels_match
cargo test --release --features emulator --test augment kernel::
