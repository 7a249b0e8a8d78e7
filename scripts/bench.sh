#!/usr/bin/env bash
# Measures the figures of the README and of docs/figures.md, draws the pictures, and writes both anew. The machine should do nothing
# else. Arguments: folder for the results [benches/results], and which parts [all]:
#   messages idle rate transports handshakes fanout   half an hour together
#   calls push watch               calls beside other servers, pushes beside messages, who is online; ten minutes together
#   store                          what is kept for users who are away, ten minutes; NATS_SERVER names a nats-server from 2.10 on
#   vs                             beside other servers that are installed, some minutes (scripts/bench-vs.sh)
#   cluster                        nodes and Redis, some minutes (scripts/bench-cluster.sh)
#   million                        root, 15 GiB and half an hour (scripts/bench-million.sh); left out, and said so, where those are missing
# With BENCH_DRY_RUN=1 it says what it would measure (scripts/bench-run.sh).
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/bench-run.sh
. scripts/bench-run.sh
out=${1:-benches/results}
[ $# -gt 0 ] && shift
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(messages idle rate transports handshakes fanout calls push watch store vs cluster million)
make_folder

# Single rounds differ by a quarter on a virtual machine, so many short ones that take turns; with nine of them the interval of the median
# is that from the second to the eighth.
rounds=(--rounds 9 --secs 2)

casts=(--rounds 6 --secs 3)

messages() {
  run pairs-100-w1 pairs --conns 100 --window 1 "${rounds[@]}"
  run pairs-100-w32 pairs --conns 100 --window 32 "${rounds[@]}"
  run pairs-5000-w1 pairs --conns 5000 --window 1 "${rounds[@]}"
  run pairs-100-w1-ack pairs --conns 100 --window 1 --ack "${rounds[@]}"
  # Floor and gateway as busy as each other.
  run pairs-100-w1-saturation pairs --conns 100 --window 1 --saturation 0.7 "${rounds[@]}"
  run pairs-100-w32-saturation pairs --conns 100 --window 32 --saturation 0.6 "${rounds[@]}"
  run pairs-2shards-w1 pairs --shards 2 --within --across --conns 100 --window 1 "${rounds[@]}"
  run pairs-2shards-w32 pairs --shards 2 --within --across --conns 100 --window 32 "${rounds[@]}"
}

idle() {
  # With six runs the interval of the median is from the smallest to the largest.
  run idle-15000 idle --conns 15000 --runs 6
  run idle-40000 idle --conns 40000 --shards 4 --runs 1 --exchange
}

rate() {
  run rate-10000 rate --conns 10000 --rate 5000,20000,50000,100000 --secs 8
  run slow-400 slow --conns 400 --payload 4096 --rate 20000 --secs 28 --rounds 2
  plot "$out/rate-10000.json"
}

transports() {
  run pairs-transports-w1 pairs --transport native,ws,tls,wss --conns 100 --window 1 "${rounds[@]}"
  run pairs-transports-w32 pairs --transport native,ws,tls,wss --conns 100 --window 32 "${rounds[@]}"
  run idle-transports idle --transport native,ws,tls,wss --conns 15000 --runs 3
  for cipher in chacha20 aes256; do
    run idle-wss-$cipher idle --transport wss --tls-cipher $cipher --conns 15000 --runs 3
  done
}

handshakes() {
  run handshakes handshakes
  # Their presence goes to Redis, which takes from both cores.
  run handshakes-nodes handshakes --nodes 2
}

fanout() {
  run fanout-15000 fanout --members 15000 "${casts[@]}"
  run fanout-15000-burst4 fanout --members 15000 --burst 4 "${casts[@]}"
  run fanout-15000-burst16 fanout --members 15000 --burst 16 "${casts[@]}"
  # More than a ring holds under a limit of 20,000 descriptors, so without the floor.
  run fanout-100000 fanout --members 100000 "${casts[@]}"
  run fanout-100000-burst4 fanout --members 100000 --burst 4 "${casts[@]}"
  # Rounds and seconds are for three nodes of one machine, and for buffers that have to be full.
  run fanout-15000-nodes fanout --members 15000 --nodes 3 --rounds 6
  run fanout-10000-slow fanout --members 10000 --slow-percent 5 --payload 1024 --burst 4 --secs 10
}

calls() {
  run calls calls --rounds 7 --secs 2
}

push() {
  run push push --rounds 7 --secs 2
  # More than a ring holds, on several shards; the pace is that of each.
  run push-all push --only all --users 100000 --broadcast-per-sec 5000 --rounds 3
}

watch() {
  # Each user stays, in or out, for half a minute on the average; then for less than a second, so that hardly anything is told before
  # the end; then on several shards, each of which has a place for each user.
  run watch-100000 watch --watches 100000 --users 10000 --changes 300 --secs 60
  run watch-1000000 watch --watches 1000000 --users 15000 --changes 20000 --secs 30
  run watch-1000000-users-100000 watch --watches 1000000 --users 100000 --changes 20000 --secs 30
}

store() {
  # One before 2.10 cannot be told to sync always, and is left out with the way to have a later one.
  local nats=(--nats-server "${NATS_SERVER:-nats-server}")
  # A burst that JetStream takes in a quarter of a minute when it syncs always; that of a million is the gateway's alone.
  run store store --in-flight 1,32,256 --burst 50000 --rounds 6 --secs 2 "${nats[@]}"
  run store-million store --only trunkline --in-flight 256 --burst 1000000 --rounds 3 --secs 2
  run store-redis store --redis --only trunkline-redis-replica --in-flight 1,256,1024 --burst 200000 --rounds 3 --secs 3
  run replay replay --users 1000 --messages 1000 --rounds 6
  run replay-restart replay --users 10000 --messages 100 --rounds 6 --restart
  # The one beside the other: with and without messages that wait.
  run storm-50000 storm --conns 50000 --secs 5 --shared-cores "$(cores_here)"
  run storm-50000-backlog storm --conns 50000 --secs 5 --shared-cores "$(cores_here)" --backlog 5
}

vs() {
  scripts/bench-vs.sh "$out"
}

cluster() {
  scripts/bench-cluster.sh "$out"
}

million() {
  if is_dry_run; then
    scripts/bench-million.sh "$out"
    return
  fi
  local free_mib
  free_mib=$(awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)
  if [ "$(id -u)" != 0 ] || [ "$free_mib" -lt 15000 ]; then
    echo "bench: the million is left out: it needs root and 15 GiB of free memory, here are $free_mib MiB" >&2
    return
  fi
  scripts/bench-million.sh "$out"
}

for part in "${parts[@]}"; do
  case $part in
    messages | idle | rate | transports | handshakes | fanout | calls | push | watch | store | vs | cluster | million) "$part" ;;
    *)
      echo "bench: there is no part $part: messages, idle, rate, transports, handshakes, fanout, calls, push, watch, store, vs, cluster and million" >&2
      exit 2
      ;;
  esac
done
write_figures
