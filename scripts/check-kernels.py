#!/usr/bin/env python3
"""Compiles every kernel for every architecture and checks what makes a kernel slow.

    scripts/check-kernels.py             compares with kernels/resources.txt
    scripts/check-kernels.py --update    writes kernels/resources.txt; review the difference before you commit it

Fails when a kernel spills registers or uses local memory on any architecture, when its registers, shared memory, threads or
occupancy differ from the table, or when its occupancy is below 25 % and the comment at the top of its file has no line
`occupancy: ...` that explains why this is faster.

A line in the file of a kernel states the maximum dynamic shared memory that the launch code requests for it:

    // dynamic shared memory: <kernel> <bytes>

The script searches for nvcc like the build: $NVCC, $CUDA_HOME/bin, PATH, .cuda/bin.
"""

import argparse
import collections
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLE = ROOT / "kernels/resources.txt"
# Each with the architecture of the PTX that it is made from, as in build/cuda.rs.
ARCHITECTURES = {75: 75, 80: 80, 86: 80, 89: 80, 90: 80, 100: 80, 120: 80}
VIRTUAL = sorted(set(ARCHITECTURES.values()))
LEAST_OCCUPANCY = 25

# Limits of a multiprocessor, from the CUDA C++ Programming Guide's table of technical specifications: warps, blocks, bytes of
# shared memory, bytes of it that are reserved for each block, its granularity.
Multiprocessor = collections.namedtuple("Multiprocessor", "warps blocks shared reserved granularity")
MULTIPROCESSORS = {
    75: Multiprocessor(32, 16, 64 << 10, 0, 256),
    80: Multiprocessor(64, 32, 164 << 10, 1024, 128),
    90: Multiprocessor(64, 32, 228 << 10, 1024, 128),
}
REGISTERS = 65536
REGISTER_GRANULARITY = 256  # of a warp
WARP_GRANULARITY = 4  # one for each quarter of a multiprocessor

Row = collections.namedtuple("Row", "kernel architecture registers shared dynamic threads occupancy")


def find_nvcc():
    folders = [os.path.join(os.environ["CUDA_HOME"], "bin")] if os.environ.get("CUDA_HOME") else []
    folders += [os.environ.get("PATH", ""), str(ROOT / ".cuda/bin")]
    nvcc = os.environ.get("NVCC") or shutil.which("nvcc", path=os.pathsep.join(folders))
    if not nvcc:
        sys.exit("nvcc was not found; run scripts/install-nvcc.sh")
    return nvcc


def round_up(value, granularity):
    return -(-value // granularity) * granularity


def occupancy(architecture, registers, shared, threads):
    """Returns the warps that fit on a multiprocessor, in percent of its maximum; 0 if no block fits."""
    limits = MULTIPROCESSORS[architecture]
    warps = -(-threads // 32)
    registers_of_warp = round_up(max(registers, 1) * 32, REGISTER_GRANULARITY)
    by_registers = REGISTERS // registers_of_warp // WARP_GRANULARITY * WARP_GRANULARITY // warps
    shared_of_block = round_up(shared + limits.reserved, limits.granularity)
    by_shared = limits.shared // shared_of_block if shared_of_block else limits.blocks
    blocks = min(limits.blocks, limits.warps // warps, by_registers, by_shared)
    return 100 * blocks * warps // limits.warps


def runs_on(kernel, architecture):
    """Whether the kernel is used. On compute capability 7.5 only the float32 kernels are; the others are empty there."""
    return architecture >= 80 or not kernel.endswith(("_tf32", "_bf16"))


def compile_one(nvcc, source, virtual):
    """Compiles for all architectures that are made from one PTX.

    Returns the output of ptxas, and the threads per block of each kernel.
    """
    with tempfile.TemporaryDirectory() as folder:
        codes = ",".join(f"sm_{real}" for real, of in ARCHITECTURES.items() if of == virtual)
        command = [nvcc, "-std=c++17", "-O3", f"-gencode=arch=compute_{virtual},code=[{codes}]",
                   "-Xptxas", "-v,-warn-spills,-warn-lmem-usage", "--keep", "--keep-dir", folder,
                   "-fatbin", "-o", os.path.join(folder, "out.fatbin"), str(source)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            return done.stdout, None
        ptx = (pathlib.Path(folder) / f"{source.stem}.ptx").read_text()
    threads = {}
    for entry in re.split(r"^\.visible \.entry ", ptx, flags=re.MULTILINE)[1:]:
        bound = re.search(r"^\.(?:max|req)ntid (\d+)(?:, (\d+), (\d+))?", entry.partition("{")[0], re.MULTILINE)
        threads[re.match(r"\w+", entry)[0]] = eval_product(bound.groups()) if bound else None
    return done.stdout, threads


def eval_product(extents):
    product = 1
    for extent in extents:
        product *= int(extent or 1)
    return product


def read_log(log, architecture):
    """Returns registers, static shared memory, stack and spilled bytes of each kernel on an architecture."""
    kernels, kernel = {}, None
    for line in log.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
            kernel = None
            if found[2] != f"sm_{architecture}":
                continue
            kernel = kernels.setdefault(found[1], {"shared": 0, "stack": 0, "spilled": 0, "registers": 0})
        elif kernel is not None and (found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, "
                                                       r"(\d+) bytes spill loads", line)):
            kernel["stack"] += int(found[1])
            kernel["spilled"] += int(found[2]) + int(found[3])
        elif kernel is not None and (found := re.search(r"Used (\d+) registers", line)):
            kernel["registers"] = int(found[1])
            if shared := re.search(r"(\d+) bytes smem", line):
                kernel["shared"] = int(shared[1])
    return kernels


def head_of(text):
    """Returns the comment at the start of a file."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("//"):
            break
        lines.append(line)
    return "\n".join(lines)


def check_source(source, results, problems):
    """Returns the table rows of a file's kernels."""
    text = source.read_text()
    name = source.relative_to(ROOT)
    dynamic = {kernel: int(size) for kernel, size in re.findall(r"^// dynamic shared memory: (\w+) (\d+)\s*$", text, re.M)}
    if "extern __shared__" in text and not dynamic:
        problems.append(f"{name}: uses dynamic shared memory, but no line states its size (// dynamic shared memory: ...)")
    failed = [virtual for virtual in VIRTUAL if results[source, virtual][1] is None]
    if failed:
        log = results[source, failed[0]][0].strip()
        problems.append(f"{name}: nvcc failed for {', '.join(f'compute_{virtual}' for virtual in failed)}:\n{log}")
        return None
    rows, defined = [], set()
    for architecture in ARCHITECTURES:
        log, threads = results[source, ARCHITECTURES[architecture]]
        found = read_log(log, architecture)
        if found.keys() != threads.keys():
            problems.append(f"{name}: the output of ptxas for sm_{architecture} lacks {sorted(threads.keys() - found.keys())}")
        for kernel, used in sorted(found.items()):
            defined.add(kernel)
            where = f"{name}: {kernel} on sm_{architecture}"
            if used["spilled"]:
                problems.append(f"{where} spills {used['spilled']} bytes of registers")
            elif used["stack"]:
                problems.append(f"{where} uses {used['stack']} bytes of local memory")
            if threads.get(kernel) is None:
                problems.append(f"{where} has no __launch_bounds__")
            elif architecture in MULTIPROCESSORS and runs_on(kernel, architecture):
                shared = used["shared"] + dynamic.get(kernel, 0)
                share = occupancy(architecture, used["registers"], shared, threads[kernel])
                if share < LEAST_OCCUPANCY and "occupancy:" not in head_of(text):
                    problems.append(f"{where} has an occupancy of {share} %, and the head of the file does not explain it "
                                    "(occupancy: ...)")
                rows.append(Row(kernel, f"sm_{architecture}", used["registers"], used["shared"], dynamic.get(kernel, 0),
                                threads[kernel], share))
    for kernel in sorted(dynamic.keys() - defined):
        problems.append(f"{name}: states the dynamic shared memory of {kernel}, which does not exist")
    return rows


def format_table(version, rows):
    heads = ("kernel", "arch", "registers", "static shared", "dynamic shared", "threads", "occupancy %")
    width = max([len(row.kernel) for row in rows] + [len(heads[0])])
    lines = ["# Written by scripts/check-kernels.py --update. Bytes of shared memory are those of a block; occupancy is the",
             "# warps that fit on a multiprocessor, in percent of the most that it can hold.", f"# nvcc {version}",
             f"{heads[0]:<{width}}  {heads[1]:<6}" + "".join(f"  {head:>{len(head)}}" for head in heads[2:])]
    for row in sorted(rows):
        numbers = zip(heads[2:], row[2:])
        lines.append(f"{row.kernel:<{width}}  {row.architecture:<6}" +
                     "".join(f"  {number:>{len(head)}}" for head, number in numbers))
    return "\n".join(lines) + "\n"


def read_table(text):
    lines = [line.split() for line in text.splitlines() if line and not line.startswith(("#", "kernel "))]
    rows = [Row(words[0], words[1], *map(int, words[2:])) for words in lines]
    version = re.search(r"^# nvcc (.*)$", text, re.M)
    return version and version[1], {(row.kernel, row.architecture): row for row in rows}


def compare(table, rows, problems):
    new = {(row.kernel, row.architecture): row for row in rows}
    for key in sorted(table.keys() | new.keys()):
        if key not in new:
            problems.append(f"{key[0]} on {key[1]} is in the table but not in the kernels")
        elif key not in table:
            problems.append(f"{key[0]} on {key[1]} is not in the table")
        elif table[key] != new[key]:
            changes = [f"{field} {was} -> {now}" for field, was, now in zip(Row._fields, table[key], new[key])
                       if was != now]
            problems.append(f"{key[0]} on {key[1]}: {', '.join(changes)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the table")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="number of concurrent compilers")
    arguments = parser.parse_args()
    nvcc = find_nvcc()
    version = re.search(r"release .*", subprocess.run([nvcc, "--version"], check=True, stdout=subprocess.PIPE,
                                                      text=True).stdout)[0]
    sources = sorted((ROOT / "kernels").glob("*.cu"))
    # The longest first, so that the other cores do not wait for it at the end.
    work = sorted(((source, virtual) for source in sources for virtual in VIRTUAL),
                  key=lambda item: -item[0].stat().st_size)
    started = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        results = dict(zip(work, pool.map(lambda item: compile_one(nvcc, *item), work)))
    problems = []
    checked = [check_source(source, results, problems) for source in sources]
    rows = [row for rows_of_file in checked for row in rows_of_file or []]
    if None in checked:
        problems.append("the table is neither compared nor written until everything compiles")
    elif arguments.update:
        TABLE.write_text(format_table(version, rows))
    else:
        known, table = read_table(TABLE.read_text()) if TABLE.exists() else (None, {})
        if known and known != version:
            print(f"{TABLE.relative_to(ROOT)} was made by nvcc {known}, this is {version}: not compared", file=sys.stderr)
        else:
            differences = []
            compare(table, rows, differences)
            if differences:
                differences.append("if the changes are intended, run scripts/check-kernels.py --update and commit the table")
            problems += differences
    print("\n".join(problems), file=sys.stderr, end="\n" if problems else "")
    least = min(rows, key=lambda row: row.occupancy, default=None)
    summary = f"{len({row.kernel for row in rows})} kernels of {len(sources)} files for {len(ARCHITECTURES)} architectures"
    if least:
        summary += f", least occupancy {least.occupancy} % ({least.kernel} on {least.architecture})"
    print(f"{summary}; {time.monotonic() - started:.0f} s")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
