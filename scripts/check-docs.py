#!/usr/bin/env python3
"""Checks what the Markdown files of this repository name: links, files, functions, metrics, make targets, crates that are built.

It says what is wrong with file and line, and ends with status 1 then.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Where the paths in a document begin, if not at the root of the repository.
BASES = {"gateway/ARCHITECTURE.md": ["gateway/core/src", "gateway/uring/src", "gateway/src"]}

LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`]+)`")
SOURCE = re.compile(r"[\w./-]+\.(?:rs|sh|py|proto|lua)")
FUNCTION = re.compile(r"(\w+)\(\)")
METRIC = re.compile(r"trunkline_[a-z_]*[a-z]\b")
MAKE = re.compile(r"make ([a-z][a-z-]*)")
# Not metrics: crates and programs.
NOT_METRICS = {"trunkline_gateway", "trunkline_core", "trunkline_router", "trunkline_proto", "trunkline_client"}

faults = []


def tracked(pattern):
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", pattern],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )
    return [Path(line) for line in listed.stdout.splitlines() if (ROOT / line).exists()]


def anchors(text):
    """The anchors that GitHub gives the headings."""
    seen, found = {}, set()
    for heading in re.findall(r"(?m)^#{1,6} (.+)$", without_blocks(text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = seen[slug] = seen.get(slug, -1) + 1
        found.add(f"{slug}-{count}" if count else slug)
    return found


def without_blocks(text):
    """The text with fenced blocks emptied, so that lines keep their numbers."""
    return re.sub(r"(?ms)^```.*?^```", lambda block: "\n" * block.group().count("\n"), text)


def check_link(document, line, target):
    if re.match(r"[a-z]+:", target):
        return
    path, _, anchor = target.partition("#")
    file = (ROOT / document.parent / path).resolve() if path else ROOT / document
    if not file.exists():
        faults.append(f"{document}:{line}: the link {target} leads nowhere")
    elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text()):
        faults.append(f"{document}:{line}: {path or document} has no heading {anchor}")


def check_protocol():
    """Each kind of frame and of record between nodes stands in the protocol with its number, and so do the versions."""
    document = "proto/PROTOCOL.md"
    lines = (ROOT / document).read_text().splitlines()
    mesh = ROOT / "gateway/core/src/mesh/wire.rs"
    version = lambda end: re.search(rf"VERSION_{end}: u16 = (\d+);", mesh.read_text())[1]
    kinds = re.findall(r'(?m)^    \w+ = (0x[0-9A-F]{2}), "(\w+)"', (ROOT / "proto/src/kind.rs").read_text())
    records = re.findall(r"(?m)^const ([A-Z_]+): u8 = (\d+);", (mesh.with_suffix("") / "record.rs").read_text())
    told = kinds + [(f"| {number} |", name.title().replace("_", "")) for name, number in records]
    told.append(("a node of this version speaks", f"{version('MIN')} to {version('MAX')}"))
    for what, words in told:
        if not any(what in line and words in line for line in lines):
            faults.append(f"{document}: it does not say: {what} {words}")


def check_names(document, line, codes):
    """Files named in a line exist, and each function of it is one of theirs."""
    bases = BASES.get(str(document), [])
    files = [code for code in codes if SOURCE.fullmatch(code) and (bases or "/" in code)]
    sources = []
    for code in files:
        found = [file for file in [ROOT / base / code for base in [*bases, ""]] if file.is_file()]
        if found:
            sources.extend(file.read_text() for file in found)
        else:
            faults.append(f"{document}:{line}: there is no {code}")
    if not sources:
        return
    for name in (match.group(1) for code in codes if (match := FUNCTION.fullmatch(code))):
        if not any(re.search(rf"\bfn {name}\b", source) for source in sources):
            faults.append(f"{document}:{line}: no function {name} in {', '.join(files)}")


def check_crates():
    """client/README.md says how many crates an application builds with the library, by its features."""
    document = Path("client/README.md")
    text = (ROOT / document).read_text()
    said = re.search(r"It builds (\d+) crates.*`--features ws` makes it (\d+), `--features tls` (\d+), both (\d+)\.", text)
    if not said:
        faults.append(f"{document}: it does not say how many crates the library builds")
        return
    for features, count in zip(["", "ws", "tls", "ws,tls"], said.groups()):
        tree = subprocess.run(
            ["cargo", "tree", "--locked", "-p", "trunkline-client", "-e", "normal,build", "--prefix", "none", "--features", features],
            cwd=ROOT, check=True, capture_output=True, text=True,
        )
        built = len(set(tree.stdout.splitlines()))
        if built != int(count):
            faults.append(f"{document}: with the features {features or 'it has by itself'} it is {built} crates, not {count}")


def main():
    check_crates()
    metrics = set(METRIC.findall((ROOT / "docs/metrics.md").read_text()))
    targets = set(re.findall(r"(?m)^([a-z][a-z-]*):", (ROOT / "Makefile").read_text()))
    for document in tracked("*.md"):
        text = (ROOT / document).read_text()
        for number, line in enumerate(without_blocks(text).splitlines(), 1):
            for link in LINK.findall(line):
                check_link(document, number, link[0] or link[1])
            codes = CODE.findall(line)
            check_names(document, number, codes)
            for metric in METRIC.findall(" ".join(codes)):
                if metric not in metrics | NOT_METRICS:
                    faults.append(f"{document}:{number}: no process has the metric {metric}")
            for target in MAKE.findall(" ".join(codes)):
                if target not in targets:
                    faults.append(f"{document}:{number}: the Makefile has no target {target}")
    check_protocol()
    print("\n".join(faults) if faults else "the documents name what there is")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
