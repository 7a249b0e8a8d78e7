#!/usr/bin/env bash
# Tests of client/js and of the page of gateway --demo in Chromium. Installs the browser and what drives it where they
# are missing.
set -euo pipefail
cd "$(dirname "$0")/.."

chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
if [ -z "$chromium" ]; then
  if ! command -v apt-get >/dev/null; then
    echo "test-browser: please install Chromium" >&2
    exit 1
  fi
  echo "test-browser: installing chromium (700 MB on the disk)"
  run=()
  [ "$(id -u)" = 0 ] || run=(sudo)
  "${run[@]}" apt-get update -qq
  "${run[@]}" apt-get install -y -qq --no-install-recommends chromium
  chromium=$(command -v chromium)
fi

# Not among the packages of client/js, which every test installs.
modules=target/browser-tests
packages=(playwright-core@1.65.1 ws@8.23.0)
if [ "$(cat "$modules/packages.txt" 2>/dev/null)" != "${packages[*]}" ]; then
  echo "test-browser: installing ${packages[*]} in $modules"
  rm -rf "$modules"
  mkdir -p "$modules"
  npm install --silent --no-audit --no-fund --prefix "$modules" "${packages[@]}"
  echo "${packages[*]}" >"$modules/packages.txt"
fi

gateway=${TRUNKLINE_GATEWAY:-target/quick/gateway}
if [ ! -x "$gateway" ]; then
  echo "test-browser: $gateway was not found; make test-browser builds it" >&2
  exit 1
fi
export TRUNKLINE_CHROMIUM=$chromium TRUNKLINE_GATEWAY=$gateway TRUNKLINE_BROWSER_MODULES=$PWD/$modules
exec node --test "$@" client/js/test/browser.test.mjs
