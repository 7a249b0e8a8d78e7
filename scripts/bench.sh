#!/usr/bin/env bash
# The figures of the README, one after the other. Takes some minutes; the machine should do nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
bench=target/release/bench
out=${1:-benches/results}
mkdir -p "$out"

run() { # name, arguments…
  local name=$1
  shift
  echo
  echo "bench $*"
  "$bench" "$@" --json "$out/$name.json"
}

# Single rounds differ by a quarter on a virtual machine, so medians of many short ones in alternation.
rounds=(--rounds 9 --secs 4)
run pairs-100-w1 pairs --conns 100 --window 1 "${rounds[@]}"
run pairs-100-w32 pairs --conns 100 --window 32 "${rounds[@]}"
run pairs-5000-w1 pairs --conns 5000 --window 1 "${rounds[@]}"
run pairs-100-w1-ack pairs --conns 100 --window 1 --ack "${rounds[@]}"
run pairs-2shards-w1 pairs --shards 2 --within --across --conns 100 --window 1
run pairs-2shards-w32 pairs --shards 2 --within --across --conns 100 --window 32
run idle-15000 idle --conns 15000 --runs 3
run idle-40000 idle --conns 40000 --shards 4 --runs 1 --exchange
