#!/usr/bin/env bash
# A million clients logged in to one gateway process, in clear and as WebSockets over TLS, and a storm of 200,000. Takes half an hour, 15 GiB (all that is free is touched) and root; the
# machine should do nothing else. Arguments: folder for the results, clients, seconds.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/bench-run.sh
. scripts/bench-run.sh
out=${1:-benches/results}
conns=${2:-1000000}
secs=${3:-300}
make_folder

prepare() {
  if [ "$(id -u)" != 0 ]; then
    echo "bench-million: needs root, for a network namespace and to read the kernel's memory" >&2
    exit 1
  fi
  if ! command -v unshare >/dev/null || ! command -v ip >/dev/null; then
    echo "bench-million: needs unshare and ip: apt-get install util-linux iproute2" >&2
    exit 1
  fi
  # Both ends of a million connections are two million sockets. The kernel looks each packet's socket up in a hash table whose size is fixed at boot (262,144
  # chains on a machine of 24 GiB, so eight sockets each); a network namespace gets a table of its own.
  entries=net.ipv4.tcp_child_ehash_entries
  before=$(sysctl -n "$entries")
  trap 'sysctl -qw "$entries=$before"' EXIT
  sysctl -qw "$entries=4194304"
  # In that namespace LOGIN may come along with the SYN (--fast-open).
  # shellcheck disable=SC2016 # expanded by the inner shell
  bench_within=(unshare --net sh -c 'ip link set lo up; sysctl -qw net.ipv4.tcp_fastopen=1027; exec "$@"' sh)
}

is_dry_run || prepare

# The gateway has all cores, and so has the load: each client is on the core of its user's shard.
cores=(--shared-cores "$(cores_here)")
# For virtual machines: all free memory is touched beforehand, and given back as connections come.
warm=(--warm-memory 1000000)

for fewer in $((conns / 10)) $((conns / 3)); do
  run "hold-$fewer" hold --conns "$fewer" --secs 40 --fast-open "${cores[@]}" "${warm[@]}"
done
run "hold-$conns-three-steps" hold --conns "$conns" --secs 20 --control $((conns / 100)) "${cores[@]}" "${warm[@]}"
run "hold-$conns" hold --conns "$conns" --secs "$secs" --control $((conns / 100)) --fast-open "${cores[@]}" "${warm[@]}"
run "hold-ws-$((conns / 10))" hold --transport ws --conns $((conns / 10)) --secs 60 --control $((conns / 1000)) --fast-open "${cores[@]}" "${warm[@]}"
# Over WebSockets and TLS the handshakes of both ends keep both cores full for minutes.
for count in $((conns / 10)) "$conns"; do
  run "hold-wss-$count" hold --transport wss --conns "$count" --secs 60 --control $((count / 100)) --fast-open "${cores[@]}" "${warm[@]}"
done
# The other ciphers differ in what they keep for a connection, and in what a heartbeat costs.
for cipher in aes256 chacha20; do
  run "hold-wss-$cipher-$((conns / 10))" hold --transport wss --tls-cipher "$cipher" --conns $((conns / 10)) --secs 60 --control $((conns / 1000)) --fast-open "${cores[@]}" "${warm[@]}"
done
run "fanout-$conns" fanout --members "$conns" --rounds 3 --secs 3 "${cores[@]}"
# The pace is that of each shard, of which there are some fifty where a process may have 20,000 descriptors.
run "push-$conns" push --only all --users "$conns" --broadcast-per-sec 2000 --rounds 1
run "storm-$((conns / 5))" storm --conns $((conns / 5)) --secs 20 --control 2000 --rate 2000 "${cores[@]}"
run "storm-$((conns / 5))-backlog" storm --conns $((conns / 5)) --secs 20 --control 2000 --rate 2000 --backlog 5 "${cores[@]}"
# Of one transport: a line for each would be the same with an offset.
plot "$out"/hold-[0-9]*[0-9].json
write_figures
