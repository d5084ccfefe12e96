#!/usr/bin/env python3
"""Runs `retune demo` with several seeds and checks that each finishes in time and that fine-tuning wins clearly.

    scripts/check-demo.py target/release/retune [--seeds 5] [--seconds 240] [--points 10] [--keep FOLDER]

Prints one row per seed. If there is a browser, the reports are checked too (scripts/check-page.py). The exit status is 1 if a
demo fails or takes longer, if the final test accuracy of the fine-tuned network is not that many points above that of the
network trained from scratch, or if a report fails its check.
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
    parser.add_argument("--keep", type=pathlib.Path, help="folder to keep the demos in")
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
                sys.exit(f"seed {seed}: the demo failed with exit status {result.returncode}")
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
                print("SKIPPED: no browser to check the reports")
            elif looked.returncode != 0:
                print(looked.stdout)
                passed = False
            failed |= not passed
    sys.exit(failed)


main()
