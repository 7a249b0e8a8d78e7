#!/usr/bin/env bash
# Fuzzes targets of proto/fuzz and gateway/fuzz: fuzz.sh [SECS] [TARGET…]. Each one for SECS seconds (60), all of them
# if none is named. With RUNS=N each gets N inputs instead, however long that takes, or SECS at most if that is given
# too.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
  seconds=$1
  shift
fi
limits=()
if [ -n "${RUNS:-}" ]; then
  if ! [[ $RUNS =~ ^[1-9][0-9]*$ ]]; then
    echo "fuzz: RUNS=$RUNS is no number of inputs" >&2
    exit 2
  fi
  limits+=("-runs=$RUNS")
else
  seconds=${seconds:-60}
fi
[ -z "$seconds" ] || limits+=("-max_total_time=$seconds")
if ! cargo fuzz --version >/dev/null 2>&1; then
  echo "fuzz: cargo-fuzz was not found. Install it: cargo install cargo-fuzz" >&2
  exit 1
fi

# The crate of each target.
declare -A crates
for crate in proto gateway; do
  for target in $(cd "$crate" && cargo fuzz list); do
    crates[$target]=$crate
  done
done
if [ $# = 0 ]; then
  mapfile -t targets < <(printf '%s\n' "${!crates[@]}" | sort)
else
  targets=("$@")
fi
# A name that is none is told before hours have passed.
for target in "${targets[@]}"; do
  if [ -z "${crates[$target]:-}" ]; then
    echo "fuzz: there is no target $target, but $(printf '%s\n' "${!crates[@]}" | sort | xargs)" >&2
    exit 2
  fi
done

# cargo-fuzz builds with unstable flags; this lets a stable compiler take them.
export RUSTC_BOOTSTRAP=1
for target in "${targets[@]}"; do
  # The head of a request may be longer than anything else that is judged as a whole; of lengths, 64 are read.
  case $target in upgrade_head) bytes_max=8448 ;; websocket_seal) bytes_max=64 ;; *) bytes_max=4096 ;; esac
  echo "fuzz: $target with ${limits[*]}"
  (cd "${crates[$target]}" && cargo fuzz run "$target" -- "${limits[@]}" "-max_len=$bytes_max")
done
