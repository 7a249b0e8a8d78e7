#!/usr/bin/env bash
# Three gateways and a router that share a Redis Cluster of six servers, all on loopback, until Ctrl-C. Nothing is left
# behind.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'TEXT'
Usage: scripts/cluster.sh [--check] [--bin DIR] [--base-port PORT]

  --check           end with status 0 once every node and the router answer alike and a message has gone from node to
                    node, instead of waiting for Ctrl-C
  --bin DIR         where the programs gateway, router and chat are [default: target/quick]
  --base-port PORT  take the ports PORT to PORT+21 instead of the usual ones
TEXT
}

check=
bin=target/quick
base=
while [ $# -gt 0 ]; do
  case $1 in
    --check) check=1 ;;
    --bin) bin=${2:?--bin needs a folder} && shift ;;
    --base-port) base=${2:?--base-port needs a number} && shift ;;
    --help) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
  esac
  shift
done

nodes=(a b c)
if [ -z "$base" ]; then
  redis=(7000 7001 7002 7003 7004 7005) bus=(17000 17001 17002 17003 17004 17005)
  client=(7700 7710 7720) http=(7780 7782 7783) mesh=(7790 7792 7793) router=7781
else
  ports() { seq $((base + $1)) $((base + $2)); }
  mapfile -t redis < <(ports 0 5)
  mapfile -t bus < <(ports 6 11)
  mapfile -t client < <(ports 12 14)
  mapfile -t http < <(ports 15 17)
  mapfile -t mesh < <(ports 18 20)
  router=$((base + 21))
fi

for program in gateway router chat; do
  if [ ! -x "$bin/$program" ]; then
    echo "cluster: $bin/$program was not found. Build it:" \
      "cargo build --profile quick --bin gateway --bin router --bin chat" >&2
    exit 1
  fi
done
if ! command -v redis-server >/dev/null || ! command -v redis-cli >/dev/null; then
  scripts/setup.sh
fi

dir=$(mktemp -d "${TMPDIR:-/tmp}/trunkline-cluster-XXXXXX")
declare -A pids=()
input=/dev/null

# In a session of its own, so that Ctrl-C reaches this script alone and what it started ends in order; and should the
# script be killed, the kernel ends it.
start() { # name, command…
  local name=$1
  shift
  setsid setpriv --pdeathsig KILL "$@" >"$dir/$name.log" 2>&1 <"$input" &
  pids[$name]=$!
}

running() { # name
  jobs -pr | grep -qx "${pids[$1]}"
}

# Ends some of them: asks, and after so many seconds does not ask any more.
end() { # seconds, names…
  local deadline=$((SECONDS + $1)) name
  shift
  for name in "$@"; do
    if running "$name"; then kill -TERM "${pids[$name]}" 2>/dev/null || true; fi
  done
  for name in "$@"; do
    while running "$name" && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.05; done
    if running "$name"; then kill -KILL "${pids[$name]}" 2>/dev/null || true; fi
    wait "${pids[$name]}" 2>/dev/null || true
    unset "pids[$name]"
  done
}

finish() {
  local status=$? name first=() last=()
  trap '' INT TERM HUP
  trap - EXIT
  # Ctrl-C is how this ends. The shell itself says 130, without the trap, when what it just waited for got the signal
  # first.
  if [ "$status" = 130 ]; then
    echo
    echo "cluster: ending"
    status=0
  fi
  for name in "${!pids[@]}"; do
    case $name in redis-*) last+=("$name") ;; *) first+=("$name") ;; esac
  done
  # The gateways have sessions to end, and leases to give up while Redis still runs.
  end 10 "${first[@]}"
  end 2 "${last[@]}"
  rm -rf "$dir"
  exit "$status"
}
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

fail() { # name, what
  echo "cluster: $1 $2. Its log says:" >&2
  tail -n 20 "$dir/$1.log" >&2
  exit 1
}

# One that has ended is why the others wait in vain.
alive() {
  local name
  for name in "${!pids[@]}"; do
    running "$name" || fail "$name" "has ended"
  done
}

# Waits until a command succeeds; fails when that takes too long or a process has ended.
await() { # name, command…
  local name=$1 deadline=$((SECONDS + 20))
  shift
  until "$@" >/dev/null 2>&1; do
    alive
    [ "$SECONDS" -lt "$deadline" ] || fail "$name" "is not ready"
    sleep 0.05
  done
}

get() { # port, path: the answer, head included
  (
    exec 3<>"/dev/tcp/127.0.0.1/$1"
    printf 'GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n' "$2" >&3
    cat <&3
  )
}

is_ready() { get "$1" /readyz | grep -q '^HTTP/1.1 200'; }
sees_all() { [ "$(get "$1" /v1/nodes | grep -o '"in_ring":true' | wc -l)" = "${#nodes[@]}" ]; }

echo "cluster: starting six Redis servers, ${#nodes[@]} gateways and a router"
for i in "${!redis[@]}"; do
  port=${redis[i]}
  mkdir "$dir/redis-$port"
  start "redis-$port" redis-server --port "$port" --bind 127.0.0.1 --dir "$dir/redis-$port" --save '' --appendonly no \
    --cluster-enabled yes --cluster-port "${bus[i]}" --cluster-node-timeout 2000
done
for port in "${redis[@]}"; do
  await "redis-$port" redis-cli -h 127.0.0.1 -p "$port" ping
done
if ! redis-cli --cluster create "${redis[@]/#/127.0.0.1:}" --cluster-replicas 1 --cluster-yes \
  >"$dir/create.log" 2>&1; then
  fail create "did not succeed"
fi
cluster_is_ok() { redis-cli -h 127.0.0.1 -p "$1" cluster info | grep -q '^cluster_state:ok'; }
for port in "${redis[@]}"; do
  await "redis-$port" cluster_is_ok "$port"
done

(umask 077 && od -An -tx1 -N32 /dev/urandom | tr -d ' \n' >"$dir/secret")
url=redis-cluster://127.0.0.1:${redis[0]},127.0.0.1:${redis[1]},127.0.0.1:${redis[2]}
for i in "${!nodes[@]}"; do
  start "gateway-${nodes[i]}" "$bin/gateway" --node "${nodes[i]}" \
    --listen "127.0.0.1:${client[i]}" --http "127.0.0.1:${http[i]}" --mesh "127.0.0.1:${mesh[i]}" \
    --redis "$url" --cluster-secret-file "$dir/secret" --shards 1 --connections-max 10000 \
    --presence-queue-max 100000 --log-format plain
done
start router "$bin/router" --http "127.0.0.1:$router" --redis "$url" --log-format plain
for i in "${!nodes[@]}"; do
  await "gateway-${nodes[i]}" is_ready "${http[i]}"
  await "gateway-${nodes[i]}" sees_all "${http[i]}"
done
await router sees_all "$router"

if [ -n "$check" ]; then
  homes=$(for port in "${http[@]}" "$router"; do
    get "$port" '/v1/explain/1?from=a' | grep -o '"home":"[a-z]*"' || echo none
  done | sort -u)
  case $homes in
    '"home":"'[abc]'"') echo "cluster: all of them answer, and name one home of user 1, ${homes#*:}" ;;
    *)
      echo "cluster: the home of user 1 is not one of the nodes, or not the same everywhere:" $homes >&2
      exit 1
      ;;
  esac
  # One that reads from a pipe that stays open, and one that ends with its only line.
  mkfifo "$dir/input"
  exec 4<>"$dir/input"
  input=$dir/input
  start receiver "$bin/chat" --user 2 --addr "127.0.0.1:${client[1]}" --http "127.0.0.1:${http[1]}"
  await receiver grep -q '^user 2 at' "$dir/receiver.log"
  echo "2;;from node to node" |
    "$bin/chat" --user 1 --addr "127.0.0.1:${client[0]}" --http "127.0.0.1:${http[0]}" >"$dir/sender.log" 2>&1 ||
    fail sender "could not send"
  await receiver grep -q '^\[1\] from node to node' "$dir/receiver.log"
  echo "cluster: a message has gone from user 1 at node a to user 2 at node b"
  exit 0
fi

echo
for i in "${!nodes[@]}"; do
  echo "  node ${nodes[i]}   clients 127.0.0.1:${client[i]}   http 127.0.0.1:${http[i]}"
done
cat <<TEXT
  router   http 127.0.0.1:$router
  Redis    127.0.0.1:${redis[0]} to ${redis[5]}        logs in $dir

Talk across nodes, each in a terminal of its own:
  $bin/chat --user 1 --addr 127.0.0.1:${client[0]} --http 127.0.0.1:${http[0]}
  $bin/chat --user 2 --addr 127.0.0.1:${client[1]} --http 127.0.0.1:${http[1]}
Look:
  curl http://127.0.0.1:$router/v1/nodes                          the nodes; every node answers this too
  curl http://127.0.0.1:${http[2]}/v1/users/1                        where user 1 is, asked at node c
  curl 'http://127.0.0.1:${http[0]}/v1/explain/2?from=a'             the way of a message from node a to user 2
  curl http://127.0.0.1:$router/v1/login --json '{"user":2}'      where user 2 should connect
Move everybody away from node b, and call that off:
  curl -X POST http://127.0.0.1:${http[1]}/v1/node/drain
  curl -X DELETE http://127.0.0.1:${http[1]}/v1/node/drain

Ctrl-C ends all of it.
TEXT

# Returns when any of them ends, which none should.
wait -n || true
alive
