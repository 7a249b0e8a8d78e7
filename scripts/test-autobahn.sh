#!/usr/bin/env bash
# Runs the cases of the Autobahn test suite, by way of the package kosoku, against the WebSocket codec. Cases 12 and 13
# are about an extension (permessage-deflate) that the gateway does not offer.
set -euo pipefail
cd "$(dirname "$0")/.."

server=${TRUNKLINE_ECHO:-target/quick/examples/websocket_echo}
venv=target/autobahn
package=kosoku==0.1.0
if [ "$(cat "$venv/package.txt" 2>/dev/null)" != "$package" ]; then
  echo "test-autobahn: installing $package in $venv"
  rm -rf "$venv"
  mkdir -p target
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check "$package"
  echo "$package" >"$venv/package.txt"
fi

coproc echo_server { exec "$server" 127.0.0.1:0; }
# The shell forgets them when the server ends.
pid=$echo_server_PID from=${echo_server[0]}
trap 'kill "$pid" 2>/dev/null || true' EXIT
read -r line <&"$from"
address=${line#listening on }
rm -rf "$venv/reports"
"$venv/bin/kosoku" --exclude '12.*' --exclude '13.*' --outdir "$venv/reports" "$@" "$address"

python3 - "$venv/reports" <<'PYTHON'
import collections, json, pathlib, sys

# What the suite allows without calling it right, such as failing late, counts as failed here.
count, others = collections.Counter(), []
for path in pathlib.Path(sys.argv[1]).glob("*_case_*.json"):
    case = json.loads(path.read_text())
    count[case["behavior"], case["behaviorClose"]] += 1
    if case["behavior"] not in ("OK", "INFORMATIONAL") or case["behaviorClose"] not in ("OK", "INFORMATIONAL"):
        others.append(f'{case["id"]}: {case["behavior"]}, close {case["behaviorClose"]}')
for (behavior, close), cases in sorted(count.items()):
    print(f"{cases} cases: {behavior}, close {close}")
print(*others, sep="\n", end="")
sys.exit(bool(others))
PYTHON
