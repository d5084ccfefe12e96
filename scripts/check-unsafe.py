#!/usr/bin/env python3
"""Compares the inventory in docs/unsafe.md with the sources: every file with unsafe code, and how often it occurs."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UNSAFE = re.compile(r"\bunsafe (?:\{|fn\b|impl\b|trait\b|extern\b)")
ROW = re.compile(r"^\| `([^`]+\.rs)` \| (\d+) \|", re.MULTILINE)


def main():
    found = {}
    for path in sorted((ROOT / "src").rglob("*.rs")):
        lines = path.read_text().splitlines()
        count = sum(len(UNSAFE.findall(line)) for line in lines if not line.lstrip().startswith("//"))
        if count:
            found[str(path.relative_to(ROOT))] = count
    listed = {name: int(count) for name, count in ROW.findall((ROOT / "docs" / "unsafe.md").read_text())}
    problems = [
        f"{name}: {found.get(name, 0)} in the source, {listed.get(name, 0)} in docs/unsafe.md"
        for name in sorted(found.keys() | listed.keys())
        if found.get(name) != listed.get(name)
    ]
    for problem in problems:
        print(problem)
    print(f"{sum(found.values())} unsafe blocks and items in {len(found)} files; docs/unsafe.md {'DIFFERS' if problems else 'agrees'}")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
