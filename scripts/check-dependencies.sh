#!/usr/bin/env bash
# Licences, sources and banned crates of everything that the program is built from (deny.toml), and, where the database of
# advisories can be fetched, known vulnerabilities.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CARGO_DENY=0.20.2
tools=$PWD/target/tools
export PATH=$tools/bin:$PATH
if [ "$(cargo deny --version 2>/dev/null)" != "cargo-deny $CARGO_DENY" ]; then
    cargo install --quiet --locked --root "$tools" cargo-deny --version "$CARGO_DENY"
fi
cargo deny --log-level error check licenses bans sources

log=$(mktemp)
trap 'rm -f "$log"' EXIT
if cargo deny --log-level error fetch db >"$log" 2>&1; then
    cargo deny check advisories
else
    echo "NOT CHECKED: the database of advisories could not be fetched"
    tail -n 2 "$log"
fi
