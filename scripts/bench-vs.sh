#!/usr/bin/env bash
# Floor, gateway and every other server that is installed, side by side. The machine should do nothing else. Argument: folder for the results.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/bench-run.sh
. scripts/bench-run.sh
out=${1:-benches/results}
make_folder
run vs vs --rounds 6 --secs 2 --transport native,ws,tls,wss
plot "$out/vs.json"
write_figures
