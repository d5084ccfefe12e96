#!/usr/bin/env bash
# Compiles a crate, as Cargo's RUSTC_WRAPPER. Crates that read files from other sources get what fuzzing needs: counters of
# the code that runs, and checks of addresses and arithmetic. The other crates are most of the code and never run here.
set -euo pipefail

case ${CARGO_PKG_NAME:-} in
retune | retune-fuzz | libfuzzer-sys | mozjpeg | image | image-webp | png | fdeflate | fax | weezl | flate2 | zlib-rs | \
    crc32fast | ruzstd | zip | serde_json | safetensors | half | csv | csv-core | memchr | byteorder-lite)
    # Build scripts are compiled without a target.
    case " $* " in
    *" --target "*)
        exec "$@" --cfg fuzzing -Zsanitizer=address -Copt-level=1 -Cdebug-assertions -Coverflow-checks \
            -Cpasses=sancov-module \
            -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
            -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares
        ;;
    esac
    ;;
esac
exec "$@"
