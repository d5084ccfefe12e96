#!/usr/bin/env bash
# Runs in Miri, Rust's interpreter that finds undefined behaviour, what it can run in minutes: the team of threads, the jobs that
# share slices among them, and the CPU engine's convolutions in portable code, on the smallest shapes. Vector instructions of a
# processor and the C++ of the emulator are beyond it; scripts/check-sanitizers.sh and scripts/fuzz.sh look at those.
#
# Miri is a part of the nightly toolchain. Without it nothing is tested, which is said.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! cargo +nightly miri --version >/dev/null 2>&1; then
    rustup component add --toolchain nightly miri rust-src >/dev/null 2>&1 || true
fi
if ! cargo +nightly miri --version; then
    echo "NOT TESTED: there is no Miri here"
    exit 0
fi
# The team's threads live as long as the program. Memory of a device is known by its address.
export MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-ignore-leaks -Zmiri-permissive-provenance"
export RETUNE_CUDA_ARCHS=none
cargo +nightly miri test --quiet --target-dir target/miri --lib -- \
    device::threads device::cpu::jobs device::cpu::memory the_smallest_of_every_kind
