#!/usr/bin/env python3
"""Checks that no line of code or comment is longer than 120 columns, in Rust, Python and shell.

Rows of tables may be: those in the documentation of Rust, and those of the two tables in code. It says which lines are
too long, and ends with status 1 then.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = 120
# A row each for a metric, and for a setting.
TABLES = {"gateway/core/src/metrics.rs", "gateway/src/config/settings.rs"}
ROW = re.compile(r"\s*//[/!] \|")
# Files that had longer lines before this was checked, and how many they have left.
LEFT = {
    "client/src/service.rs": 1,
    "gateway/core/src/auth/tests.rs": 3,
    "gateway/core/src/core.rs": 1,
    "gateway/core/src/core/carry.rs": 1,
    "gateway/core/src/core/groups.rs": 2,
    "gateway/core/src/core/keep.rs": 1,
    "gateway/core/src/core/rooms.rs": 1,
    "gateway/core/src/core/route.rs": 1,
    "gateway/core/src/core/trunk.rs": 1,
    "gateway/core/src/groups.rs": 1,
    "gateway/core/src/io/mod.rs": 1,
    "gateway/core/src/lib.rs": 1,
    "gateway/core/src/limits.rs": 1,
    "gateway/core/src/mesh/link.rs": 1,
    "gateway/core/src/mesh/wire/record.rs": 1,
    "gateway/core/src/simulation/groups.rs": 1,
    "gateway/core/src/simulation/mod.rs": 1,
    "gateway/redis-store/src/work.rs": 1,
    "gateway/src/prometheus.rs": 2,
    "gateway/src/run.rs": 1,
    "gateway/uring/src/ring.rs": 1,
    "router/src/http/access.rs": 5,
    "router/src/http/jwt/tests.rs": 11,
    "scripts/bench-cluster.sh": 2,
    "scripts/bench-million.sh": 6,
    "scripts/bench-vs.sh": 1,
    "scripts/bench.sh": 10,
    "scripts/check-docs.py": 4,
    "scripts/figures.py": 72,
    "scripts/test-figures.py": 1,
    "scripts/test-hung-backends.py": 9,
}


def main():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.rs", "*.py", "*.sh"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )
    faults = []
    for file in listed.stdout.splitlines():
        if file in TABLES or not (ROOT / file).exists():
            continue
        lines = enumerate((ROOT / file).read_text().splitlines(), 1)
        long = [(number, len(line)) for number, line in lines if len(line) > COLUMNS and not ROW.match(line)]
        if len(long) > LEFT.get(file, 0):
            faults += [f"{file}:{number}: {columns} columns, and there may be {COLUMNS}" for number, columns in long]
    print("\n".join(faults) if faults else f"no new line has more than {COLUMNS} columns")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
