#!/usr/bin/env bash
# Runs the standard load tests against this server and prints the table of scripts/README.md.
# It needs two cores: one for the server, one for the load generator.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
seconds=${1:-5}

cargo build --quiet --release --bin noroshi --example load
ulimit -n "$(ulimit -Hn)"
unset CARGO

# load prints rows: a name, at least two spaces, and a value.
row() {
    local name=$1
    shift
    "$target"/release/examples/load --seconds "$seconds" "$@" | awk -v name="$name" '
        { gsub(/^ +/, "", $0); split($0, cell, /  +/); value[cell[1]] = cell[2] }
        END {
            printf "| %s | %s | %s | %s | %s |\n", name,
                value["per second"], value["p50 ms"], value["p99 ms"], value["CPU µs each"]
        }'
}

echo "| 100 at a time | per second | p50 ms | p99 ms | CPU µs each |"
echo "|---|---|---|---|---|"
row "candidates relayed (200 bytes)"
row "the same, 16 in flight in each pair" --in-flight 16
row "the same, beside 9,000 idle connections" --idle 9000
row "SDPs relayed (2,500 bytes)" --payload sdp
row "handshakes" --mode connect
row "connect, register, close" --mode churn
row "whole calls" --mode call
echo
echo "Idle registered connections, two in each room:"
"$target"/release/examples/load --mode idle --idle 9900 | sed 's/^ */    /'
echo
echo "Measured on: $(sed -n 's/^model name\s*: //p' /proc/cpuinfo | head -1), $(nproc) cores, Linux $(uname -r)"
