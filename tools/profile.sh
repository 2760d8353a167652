#!/usr/bin/env bash
# Profiles the engine's threads while the demo runs in burst mode, and says where the time goes.
# Needs perf (Debian: linux-perf). Writes target/profile/; SECONDS_RUN and DEMO_FLAGS adjust it.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v perf >/dev/null || { echo "profile.sh: perf is missing; install linux-perf" >&2; exit 2; }
out=target/profile
mkdir -p "$out"
cargo build --release --bin kalshi-feed
# The software clock works where hardware counters do not; frame pointers make the stacks.
perf record -q -F 997 -e cpu-clock --call-graph fp -o "$out/perf.data" -- \
    target/release/kalshi-feed demo --mode burst --duration "${SECONDS_RUN:-10}s" --json \
    ${DEMO_FLAGS:-} > "$out/summary.json"
perf report -i "$out/perf.data" --sort comm,symbol --no-children --stdio -g none \
    --percent-limit 0.5 2>/dev/null | sed "s/ *- *- *$//" > "$out/report.txt"
grep -v '^$' "$out/report.txt" | grep -v '^#' | head -40
echo "report: $out/report.txt, data: $out/perf.data, summary: $out/summary.json"
if command -v inferno-collapse-perf >/dev/null && command -v inferno-flamegraph >/dev/null; then
    perf script -i "$out/perf.data" 2>/dev/null | inferno-collapse-perf | inferno-flamegraph \
        > "$out/flame.svg"
    echo "flame graph: $out/flame.svg"
else
    echo "for a flame graph: cargo install inferno, then run this again"
fi
