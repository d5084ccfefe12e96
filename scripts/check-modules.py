#!/usr/bin/env python3
"""Checks that no files of src/ import each other in a circle.

A name that a mod.rs imports or re-exports counts as imported from the file that defines it. Tests and modules within a file are
left out. Prints the imports of each circle and exits with status 1 if there is one.
"""

import re
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src"
USE = re.compile(r"^(?:pub(?:\([^)]*\))? )?use ([^;]+);", re.M)
INLINE_MODULE = re.compile(r"^(?:#\[cfg\((?:all\()?test[^\n]*\n)?(?:pub(?:\([^)]*\))? )?mod \w+ \{\n.*?^\}\n", re.M | re.S)


def module_of(path):
    *folders, name = path.relative_to(SOURCE).with_suffix("").parts
    return tuple(folders) if name in ("mod", "lib", "main") else (*folders, name)


def code(path):
    return INLINE_MODULE.sub("", re.sub(r"//[^\n]*", "", path.read_text()))


def paths_of(tree):
    """`a::{b, c::{d, e}}` as `a::b`, `a::c::d`, `a::c::e`."""
    head, brace, rest = tree.strip().partition("{")
    if not brace:
        return [head]
    items, depth = [""], 0
    for letter in rest.rsplit("}", 1)[0]:
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 0:
            items.append("")
        else:
            items[-1] += letter
    return [head + path for item in items if item.strip() for path in paths_of(item)]


FILES = {module_of(path): path for path in SOURCE.rglob("*.rs") if path.name != "main.rs"}
CODE = {module: code(path) for module, path in FILES.items()}


def absolute(module, path):
    """The path from the root of the crate; none for other crates."""
    first, *rest = path.split(" as ")[0].strip().split("::")
    if first == "crate":
        return tuple(rest)
    if first in ("self", "super"):
        base = module
        while first == "super":
            base = base[:-1]
            first, rest = (rest[0], rest[1:]) if rest and rest[0] == "super" else ("", rest)
        return (*base, *rest)
    return (*module, first, *rest) if (*module, first) in FILES else None


def uses(module):
    for tree in USE.findall(CODE[module]):
        for path in paths_of(tree):
            target = absolute(module, path)
            if target is not None:
                yield path.split(" as ")[-1].strip().split("::")[-1], target


PASSED_ON = {
    (module, name): target
    for module, path in FILES.items()
    if path.name in ("mod.rs", "lib.rs")
    for name, target in uses(module)
}


def defining_file(path):
    module = next(path[:length] for length in range(len(path), -1, -1) if path[:length] in FILES)
    target = PASSED_ON.get((module, path[len(module)])) if len(module) < len(path) else None
    return defining_file(target) if target else module


def imports(module):
    passes_on = FILES[module].name in ("mod.rs", "lib.rs")
    body = re.sub(r"\bmod \w+;", "", USE.sub("", CODE[module]))
    targets = {defining_file(target) for name, target in uses(module) if not passes_on or re.search(rf"\b{re.escape(name)}\b", body)}
    for path in re.findall(r"(?<![:\w$])\w+(?:::\w+)+", body):
        target = absolute(module, path)
        if target is not None:
            targets.add(defining_file(target))
    return targets - {module}


def circles(edges):
    """The strongly connected sets of more than one file, by reachability."""
    reach = {}
    for start in edges:
        seen, waiting = set(), [start]
        while waiting:
            for target in edges[waiting.pop()] - seen:
                seen.add(target)
                waiting.append(target)
        reach[start] = seen
    sets = {frozenset(other for other in reach[start] if start in reach[other]) for start in edges if start in reach[start]}
    return [circle for circle in sets if circle]


def main():
    edges = {module: imports(module) for module in FILES}
    found = circles(edges)
    for circle in found:
        print(f"a circle of {len(circle)} files:")
        for module in sorted(circle):
            for target in sorted(edges[module] & circle):
                print(f"  {FILES[module].relative_to(SOURCE.parent)} imports {FILES[target].relative_to(SOURCE.parent)}")
    print(f"{len(FILES)} files, {sum(map(len, edges.values()))} imports, {len(found)} circles")
    return 1 if found or len(FILES) < 100 else 0


if __name__ == "__main__":
    sys.exit(main())
