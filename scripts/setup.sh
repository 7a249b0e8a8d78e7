#!/usr/bin/env bash
# Checks for what build and tests need, and installs what is missing and a distribution package offers. With --build,
# what the build needs.
set -euo pipefail

for_tests=1
[ "${1:-}" != --build ] || for_tests=

missing=()
command -v cc >/dev/null || missing+=(build-essential)
command -v make >/dev/null || missing+=(make)
if [ -n "$for_tests" ]; then
  # Tests form Redis Clusters of their own.
  command -v redis-server >/dev/null || missing+=(redis-server)
  command -v redis-cli >/dev/null || missing+=(redis-tools)
  # Tests make certificates.
  command -v openssl >/dev/null || missing+=(openssl)
  # Tests have the metrics judged by Prometheus's own tool.
  command -v promtool >/dev/null || missing+=(prometheus)
  # Tests hold the HTTP APIs against their documents with Schemathesis, a Python program.
  command -v python3 >/dev/null || missing+=(python3)
  python3 -c 'import ensurepip' >/dev/null 2>&1 || missing+=(python3-venv)
  # Tests talk to the gateway through a WebSocket library of Node.
  command -v node >/dev/null || missing+=(nodejs)
  command -v npm >/dev/null || missing+=(npm)
  # A test cuts the network between nodes, in a network of its own.
  command -v ip >/dev/null || missing+=(iproute2)
fi

if ! command -v cargo >/dev/null; then
  echo "setup: cargo was not found. Install Rust 1.95 or later with rustup, then try again." >&2
  exit 1
fi
for component in ${for_tests:+fmt clippy}; do
  if ! cargo "$component" --version >/dev/null 2>&1; then
    echo "setup: 'cargo $component' was not found. Install it: rustup component add ${component/fmt/rustfmt}" >&2
    exit 1
  fi
done

if [ "${#missing[@]}" -gt 0 ]; then
  if ! command -v apt-get >/dev/null; then
    echo "setup: please install: ${missing[*]}" >&2
    exit 1
  fi
  run=()
  [ "$(id -u)" = 0 ] || run=(sudo)
  echo "setup: installing ${missing[*]}"
  "${run[@]}" apt-get update -qq
  # The packages of redis-server and prometheus would start system services; nobody here needs them. A policy of the
  # host's own stays.
  policy=/usr/sbin/policy-rc.d
  if [[ " ${missing[*]} " =~ \ (redis-server|prometheus)\  ]] && [ ! -e "$policy" ]; then
    trap '"${run[@]}" rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | "${run[@]}" tee "$policy" >/dev/null
    "${run[@]}" chmod 755 "$policy"
  fi
  "${run[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi

[ -n "$for_tests" ] || exit 0
# In a folder of its own, so that nothing of the host's Python is touched; made anew when the versions change.
cd "$(dirname "$0")/.."
venv=target/schemathesis
if ! cmp -s scripts/schemathesis.txt "$venv/schemathesis.txt"; then
  echo "setup: installing Schemathesis in $venv"
  rm -rf "$venv"
  mkdir -p target
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement scripts/schemathesis.txt
  cp scripts/schemathesis.txt "$venv/schemathesis.txt"
fi

# Clients of WebSocket libraries that nobody here wrote, of Python and of Node.
clients=target/websocket-clients
if ! cmp -s scripts/websocket-clients.txt "$clients/websocket-clients.txt"; then
  echo "setup: installing WebSocket libraries in $clients"
  rm -rf "$clients"
  mkdir -p "$clients"
  python3 -m venv "$clients/venv"
  grep '==' scripts/websocket-clients.txt >"$clients/python.txt"
  "$clients/venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$clients/python.txt"
  mapfile -t packages < <(sed -n 's/^npm: //p' scripts/websocket-clients.txt)
  npm install --silent --no-audit --no-fund --prefix "$clients" "${packages[@]}"
  cp scripts/websocket-clients.txt "$clients/websocket-clients.txt"
fi

# The JavaScript client is tested in Node, and its size is judged where it is built.
js=client/js
if [ ! -e "$js/node_modules" ] || [ "$js/package-lock.json" -nt "$js/node_modules" ]; then
  echo "setup: installing what the JavaScript client is built with"
  npm ci --silent --no-audit --no-fund --prefix "$js"
fi
npm run --silent --prefix "$js" build
