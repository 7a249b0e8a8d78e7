#!/usr/bin/env bash
# Runs the configurations of docs/proxies.md with nginx and HAProxy. Installs those where they are missing; no service
# of the host is started or touched.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
[ -x /usr/sbin/nginx ] || command -v nginx >/dev/null || missing+=(nginx)
[ -e /usr/lib/nginx/modules/ngx_stream_module.so ] || missing+=(libnginx-mod-stream)
[ -x /usr/sbin/haproxy ] || command -v haproxy >/dev/null || missing+=(haproxy)
if [ "${#missing[@]}" -gt 0 ]; then
  if ! command -v apt-get >/dev/null; then
    echo "test-proxies: please install: ${missing[*]}" >&2
    exit 1
  fi
  echo "test-proxies: installing ${missing[*]}"
  run=()
  [ "$(id -u)" = 0 ] || run=(sudo)
  "${run[@]}" apt-get update -qq
  # The packages would start system services; nobody here needs them. A policy of the host's own stays.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    trap '"${run[@]}" rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | "${run[@]}" tee "$policy" >/dev/null
    "${run[@]}" chmod 755 "$policy"
  fi
  "${run[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi
PATH=$PATH:/usr/sbin scripts/test-proxies.py "${TRUNKLINE_GATEWAY:-target/quick/gateway}"
