#!/usr/bin/env python3
"""Checks that no files of the crates import each other in a circle.

An import is a `use crate::…`, a `use super::…`, or a path that begins with `crate::`, outside of tests. What is named
at the root counts for the module that it is from. A file and the files of its own folder (`core.rs` and `core/`) count
as one: they are one module, cut into pieces to be read. It says which files make a circle and by which lines, and ends
with status 1 then.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CRATES = [
    "proto", "router/core", "router", "gateway/core", "gateway/store", "gateway/redis-store", "gateway/tls",
    "gateway/uring", "gateway", "client", "client/chat", "benches",
]


def without_tests(text):
    """The text without comments and without what stands behind the tests."""
    text = re.sub(r"//.*", "", text)
    at = text.find("#[cfg(test)]\nmod tests {")
    return text[:at] if at >= 0 else text


def paths(tree):
    """Each path of what stands behind `use`: `a::{b, c::d}` is a::b and a::c::d."""
    tree = re.sub(r"\s", "", re.sub(r"\bas\s+\w+", "", tree))
    if not tree.startswith("{"):
        head, cut, rest = tree.partition("::")
        return [[head] + path for path in paths(rest)] if cut else [[tree]]
    found, depth, item = [], 0, ""
    for char in tree[1:-1] + ",":
        depth += (char == "{") - (char == "}")
        if char == "," and depth == 0:
            found += paths(item) if item else []
            item = ""
        else:
            item += char
    return found


def module_of(file, src):
    parts = list(file.relative_to(src).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "mod" else parts


def at_root(src, modules):
    """Whose the names are that the root of the crate has from its modules."""
    names = {}
    for root in [src / "lib.rs", src / "main.rs"]:
        text = without_tests(root.read_text()) if root.exists() else ""
        for match in re.finditer(r"\buse (?:crate::|self::)?([^;]*);", text):
            for path in paths(match[1]):
                if path[0] in modules and len(path) > 1:
                    names[path[-1]] = path[0]
    return names


def imports(crate):
    """By module, that is the first part of a path, whom it imports and where."""
    src = ROOT / crate / "src"
    modules = {path.with_suffix("").name for path in src.iterdir()} - {"lib", "main", "bin"}
    names = at_root(src, modules)
    edges = defaultdict(lambda: defaultdict(list))
    for file in sorted(src.rglob("*.rs")):
        module = module_of(file, src)
        # What only tests have, and the simulators, which may see everything.
        if module[0] not in modules or "tests" in module or module[0] == "simulation":
            continue
        text = without_tests(file.read_text())
        for match in re.finditer(r"\buse (crate|(?:super::)*super)::([^;]*);|\bcrate::(\w+)", text):
            if match[3]:
                targets = [[match[3]]]
            elif match[1] == "crate":
                targets = paths(match[2])
            else:
                up = module[: -match[1].count("super")]
                targets = [up + path for path in paths(match[2])]
            line = text[: match.start()].count("\n") + 1
            for target in targets:
                imported = target and (target[0] if target[0] in modules else names.get(target[0]))
                if imported and imported not in (module[0], "simulation"):
                    edges[module[0]][imported].append(f"{file.relative_to(ROOT)}:{line}")
    return edges


def circles(edges):
    """The strongly connected components of more than one module (Tarjan, 1972)."""
    index, low, stack, found = {}, {}, [], []

    def visit(module):
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in list(edges[module]):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            circle = [stack.pop()]
            while circle[-1] != module:
                circle.append(stack.pop())
            if len(circle) > 1:
                found.append(sorted(circle))

    for module in list(edges):
        if module not in index:
            visit(module)
    return found


def main():
    is_wrong = False
    for crate in CRATES:
        edges = imports(crate)
        for circle in circles(edges):
            is_wrong = True
            print(f"{crate}: these import each other in a circle: {', '.join(circle)}")
            for module in circle:
                for other, places in sorted(edges[module].items()):
                    if other in circle:
                        print(f"  {module} imports {other}: {', '.join(places[:3])}")
    if not is_wrong:
        print("no modules import each other in a circle")
    return is_wrong


if __name__ == "__main__":
    sys.exit(main())
