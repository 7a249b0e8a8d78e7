#!/usr/bin/env bash
# Runs nodes of another build of the gateway and of this one as one cluster, below traffic: an upgrade, and its way
# back.
set -euo pipefail
cd "$(dirname "$0")/.."

from=${1:-}
if [ -z "$from" ] || ! commit=$(git rev-parse --verify --quiet "$from^{commit}"); then
  echo "test-upgrade: which build do the nodes have before? make test-upgrade FROM=v0.1.0, or FROM=<commit>" >&2
  exit 1
fi
cargo=${CARGO:-cargo}
other=target/upgrade/$commit
if [ ! -x "$other/gateway" ]; then
  tree=$(mktemp -d)
  trap 'git worktree remove --force "$tree/source" 2>/dev/null || true; rm -rf "$tree"' EXIT
  git worktree add --detach --quiet "$tree/source" "$commit"
  echo "test-upgrade: building $from"
  (cd "$tree/source" &&
    CARGO_TARGET_DIR=$OLDPWD/target/upgrade/build $cargo build --profile quick --locked --bin gateway)
  mkdir -p "$other"
  cp target/upgrade/build/quick/gateway "$other/gateway"
fi
TRUNKLINE_OTHER_GATEWAY=$PWD/$other/gateway \
  $cargo test --workspace --locked --test gateway -- cluster_rolling:: --nocapture
