#!/usr/bin/env bash
# Checks for what build and tests need, and installs what is missing and a distribution package offers.
set -euo pipefail

missing=()
command -v cc >/dev/null || missing+=(build-essential)
command -v make >/dev/null || missing+=(make)

if ! command -v cargo >/dev/null; then
  echo "setup: cargo was not found. Install Rust 1.95 or later with rustup, then try again." >&2
  exit 1
fi
for component in fmt clippy; do
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
  "${run[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi
