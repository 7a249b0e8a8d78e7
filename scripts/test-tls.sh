#!/usr/bin/env bash
# Looks at TLS on the port for clients from outside: testssl.sh and sslyze find nothing above "low", and OpenSSL and
# GnuTLS change their keys within a connection, once with and once without asking for the other side's. Installs those
# where they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
command -v testssl >/dev/null || missing+=(testssl.sh bsdmainutils)
command -v gnutls-cli >/dev/null || missing+=(gnutls-bin)
command -v openssl >/dev/null || missing+=(openssl)
if [ "${#missing[@]}" -gt 0 ]; then
  if ! command -v apt-get >/dev/null; then
    echo "test-tls: please install: ${missing[*]}" >&2
    exit 1
  fi
  echo "test-tls: installing ${missing[*]}"
  run=()
  [ "$(id -u)" = 0 ] || run=(sudo)
  "${run[@]}" apt-get update -qq
  "${run[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi

venv=target/tls-scanners
package=sslyze==6.3.1
if [ "$(cat "$venv/package.txt" 2>/dev/null)" != "$package" ]; then
  echo "test-tls: installing $package in $venv"
  rm -rf "$venv"
  mkdir -p target
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check "$package"
  echo "$package" >"$venv/package.txt"
fi
scripts/test-tls.py "${TRUNKLINE_GATEWAY:-target/quick/gateway}" "$venv/bin/sslyze"
