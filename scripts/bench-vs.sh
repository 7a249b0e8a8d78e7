#!/usr/bin/env bash
# Floor, gateway and every other server that is installed, side by side. The machine should do nothing else. Argument: folder for the results.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-benches/results}
mkdir -p "$out"
target/release/bench vs --rounds 6 --secs 2 --transport native,ws,tls,wss --json "$out/vs.json"
target/release/bench plot "$out/vs.json" --out "$out"
if [ "$out" = benches/results ]; then scripts/figures.py; fi
