#!/usr/bin/env bash
# Fuzzes every target of proto/fuzz and gateway/fuzz for the given number of seconds each.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
if ! cargo fuzz --version >/dev/null 2>&1; then
  echo "fuzz: cargo-fuzz was not found. Install it: cargo install cargo-fuzz" >&2
  exit 1
fi
# cargo-fuzz builds with unstable flags; this lets a stable compiler take them.
export RUSTC_BOOTSTRAP=1
for crate in proto gateway; do
  for target in $(cd "$crate" && cargo fuzz list); do
    echo "fuzz: $target for ${seconds} s"
    (cd "$crate" && cargo fuzz run "$target" -- -max_total_time="$seconds" -max_len=4096)
  done
done
