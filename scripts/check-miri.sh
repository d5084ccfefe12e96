#!/usr/bin/env bash
# Runs parts of the tests in Miri, an interpreter that detects undefined behaviour: the thread pool, the jobs that share
# slices, and the CPU engine's convolutions in portable code, on the smallest shapes. Miri supports neither vector instructions
# nor the emulator's C++; scripts/check-sanitizers.sh and scripts/fuzz.sh cover those.
#
# Miri is part of the nightly toolchain. Without it nothing is tested, and the script prints a message.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! cargo +nightly miri --version >/dev/null 2>&1; then
    rustup component add --toolchain nightly miri rust-src >/dev/null 2>&1 || true
fi
if ! cargo +nightly miri --version; then
    echo "NOT TESTED: Miri is not installed"
    exit 0
fi
# The threads of the pool live as long as the program. Device memory is identified by its address.
export MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-ignore-leaks -Zmiri-permissive-provenance"
export RETUNE_CUDA_ARCHS=none
cargo +nightly miri test --quiet --target-dir target/miri --lib -- \
    device::threads device::cpu::jobs device::cpu::memory the_smallest_of_every_kind
