#!/usr/bin/env python3
"""Runs the Python program on the page of a run, and compares its probabilities with those of `retune predict`.

    scripts/check-snippet.py target/release/retune runs/1 one.jpg two.jpg

The program is taken from report.html as a reader would copy it, and runs in the current folder, because the path of the model is that
on the page. If it needs model.onnx, `retune convert` writes it. No probability may differ by more than 1e-4 (they are printed with four
decimals), and the order of the classes must be the same as far as their probabilities differ by more than that. Exits 1 if an image
fails. Needs torch, torchvision, safetensors and Pillow 13, which scales images as retune does, and onnxruntime for networks that
torchvision does not have.
"""

import html
import json
import pathlib
import re
import subprocess
import sys
import tempfile

LIMIT = 1e-4


def snippet(page):
    found = re.search(r'<pre class="python"><code>(.*?)</code></pre>', page, re.DOTALL)
    if found is None:
        sys.exit("there is no Python program on the page")
    return html.unescape(found[1])


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}")
    return done.stdout


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    retune, folder, images = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3:]
    program = snippet((folder / "report.html").read_text(encoding="utf-8"))
    passed = True
    with tempfile.TemporaryDirectory() as scratch:
        script = pathlib.Path(scratch) / "snippet.py"
        script.write_text(program, encoding="utf-8")
        if "onnxruntime" in program and not (folder / "model.onnx").exists():
            run([retune, "convert", folder / "model.safetensors", folder / "model.onnx"])
        for image in images:
            [expected] = json.loads(run([retune, "predict", folder / "model.safetensors", image, "--top", "1000000", "--json"]))
            expected = {entry["class"]: entry["probability"] for entry in expected["classes"]}
            lines = run([sys.executable, script, image]).splitlines()
            found = [(name, float(value)) for name, value in (line.rsplit(": ", 1) for line in lines)]
            missing = len(found) != min(5, len(expected)) or any(name not in expected for name, _ in found)
            difference = max((abs(value - expected[name]) for name, value in found if name in expected), default=1.0)
            ordered = all(expected[a] >= expected[b] - LIMIT for (a, _), (b, _) in zip(found, found[1:]) if not missing)
            good = not missing and ordered and difference <= LIMIT
            passed = passed and good
            print(f"{'ok  ' if good else 'FAIL'} {image}: {lines[0]}, largest difference of a probability {difference:.1e}")
    sys.exit(0 if passed else 1)


main()
