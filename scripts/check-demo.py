#!/usr/bin/env python3
"""Runs `retune demo` with several seeds: each has to end in time, and fine-tuning has to win clearly.

    scripts/check-demo.py target/release/retune [--seeds 5] [--seconds 240] [--points 10] [--keep FOLDER]

Prints one row a seed. Where there is a browser, the pages are opened too (scripts/check-page.py). Exits 1 if a demo failed,
took longer, if the fine-tuned network's last test accuracy was not that many points above that of the network from scratch, or
if a page does not come out well.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

CHECK_PAGE = pathlib.Path(__file__).resolve().parent / "check-page.py"
NO_BROWSER = 2


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("retune")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--points", type=float, default=10)
    parser.add_argument("--keep", type=pathlib.Path, help="where to leave the demos")
    arguments = parser.parse_args()
    retune = pathlib.Path(arguments.retune).resolve()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        place = arguments.keep or pathlib.Path(folder)
        for seed in range(arguments.seeds):
            out = place / f"seed-{seed}"
            command = [retune, "demo", "--device", "cpu", "--seed", str(seed), "--out", out, "--json", "--quiet"]
            result = subprocess.run(command, stdout=subprocess.PIPE, check=False)
            if result.returncode != 0:
                sys.exit(f"seed {seed}: the demo ended with {result.returncode}")
            found = json.loads(result.stdout)
            fine_tuned, from_scratch = found["fine_tuned"]["test_acc"], found["from_scratch"]["test_acc"]
            points = 100 * (fine_tuned - from_scratch)
            passed = points >= arguments.points and found["seconds"] <= arguments.seconds
            print(f"seed {seed}: fine-tuned {fine_tuned:.3f}, from scratch {from_scratch:.3f}, {points:+.1f} points; "
                  f"pretrained {found['pretrained']['test_acc']:.3f}; {found['seconds']:.0f} s{'' if passed else '  FAILED'}",
                  flush=True)
            pages = [out / "report.html", *(out / run / "report.html" for run in ("pretrained", "fine-tuned", "from-scratch"))]
            looked = subprocess.run([sys.executable, CHECK_PAGE, *pages], stdout=subprocess.PIPE, text=True, check=False)
            if looked.returncode == NO_BROWSER:
                print("SKIPPED: the pages were not opened")
            elif looked.returncode != 0:
                print(looked.stdout)
                passed = False
            failed |= not passed
    sys.exit(failed)


main()
