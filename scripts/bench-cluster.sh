#!/usr/bin/env bash
# Messages across the nodes of a cluster beside those within one node, and logins with presence in Redis. Each run starts six
# redis-server processes and the nodes on loopback and ends them. Takes some minutes; the machine should do nothing else.
# Argument: folder for the results.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/bench-run.sh
. scripts/bench-run.sh
out=${1:-benches/results}
make_folder

rounds=(--rounds 9 --secs 2)
run cluster-pairs-w1 pairs --nodes 2 --conns 100 --window 1 "${rounds[@]}"
run cluster-pairs-w32 pairs --nodes 2 --conns 100 --window 32 "${rounds[@]}"
run cluster-pairs-w1-ack pairs --nodes 2 --conns 100 --window 1 --ack "${rounds[@]}"
run cluster-pairs-guests pairs --nodes 3 --guests --conns 96 --window 32 "${rounds[@]}"
run cluster-rate rate --nodes 3 --conns 3000 --rate 5000,20000,50000 --secs 10
# One node, so that the bench has the other core. Redis takes from both.
run cluster-logins hold --redis --conns 60000 --secs 10
run alone-logins hold --conns 60000 --secs 10
plot "$out"/cluster-pairs-*.json
write_figures
