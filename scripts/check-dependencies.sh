#!/usr/bin/env bash
# Checks licences, sources and banned crates of all dependencies (deny.toml), and known vulnerabilities if the database of
# advisories can be downloaded.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CARGO_DENY=0.20.2
tools=$PWD/target/tools
export PATH=$tools/bin:$PATH
if [ "$(cargo deny --version 2>/dev/null)" != "cargo-deny $CARGO_DENY" ]; then
    # The tool has little to do, so optimising it would take longer than it saves.
    cargo install --quiet --locked --debug --root "$tools" cargo-deny --version "$CARGO_DENY"
fi
cargo deny --log-level error check licenses bans sources

log=$(mktemp)
trap 'rm -f "$log"' EXIT
if cargo deny --log-level error fetch db >"$log" 2>&1; then
    cargo deny check advisories
else
    echo "NOT CHECKED: the database of advisories could not be downloaded"
    tail -n 2 "$log"
fi
