#!/usr/bin/env bash
# The JavaScript client in Node, Bun and Deno, each with its own WebSocket: it talks at a node, which then drains, and
# at the one it is sent to. Installs Bun and Deno below target where they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."

runtimes=target/js-runtimes
packages=(bun@1.4.5 deno@2.9.6)
if [ "$(cat "$runtimes/packages.txt" 2>/dev/null)" != "${packages[*]}" ]; then
  echo "test-runtimes: installing ${packages[*]} in $runtimes (300 MB on the disk)"
  rm -rf "$runtimes"
  mkdir -p "$runtimes"
  npm install --silent --no-audit --no-fund --prefix "$runtimes" "${packages[@]}"
  echo "${packages[*]}" >"$runtimes/packages.txt"
fi
bin=$PWD/$runtimes/node_modules/.bin
node --version
for runtime in bun deno; do
  echo "$runtime $("$bin/$runtime" --version | head -n 1)"
done
export TRUNKLINE_JS_RUNTIMES="node,$bin/bun,$bin/deno"
exec cargo test --locked -p trunkline-gateway --test gateway websocket_cluster::
