#!/usr/bin/env python3
"""Runs the Python program on the page of a run, and compares its probabilities with those of `retune predict`.

    scripts/check-snippet.py target/release/retune runs/1 one.jpg two.jpg

The program is taken from report.html as a reader would copy it, and runs in a folder of its own, with the path of the model as it is
on the page. If it needs model.onnx, `retune convert` writes it. The classes must be in the same order wherever their probabilities
differ by more than the limit. For an image whose shorter side is that of `Resize`, no probability may differ by more than 1e-4, as
they are printed with four decimals; for others by 3e-3, as pixels may differ by 1 of 255 after resizing. Exits 1 if an image fails. Needs torch, torchvision, safetensors and pillow, and
onnxruntime for networks that torchvision does not have.
"""

import html
import json
import pathlib
import re
import subprocess
import sys
import tempfile

from PIL import Image

EXACT_LIMIT, RESIZED_LIMIT = 1e-4, 3e-3


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
        resize = int(re.search(r"Resize\((\d+)\)", program)[1])
        for image in images:
            limit = EXACT_LIMIT if min(Image.open(image).size) == resize else RESIZED_LIMIT
            [expected] = json.loads(run([retune, "predict", folder / "model.safetensors", image, "--top", "1000000", "--json"]))
            expected = {entry["class"]: entry["probability"] for entry in expected["classes"]}
            lines = run([sys.executable, script, image]).splitlines()
            found = [(name, float(value)) for name, value in (line.rsplit(": ", 1) for line in lines)]
            missing = len(found) != min(5, len(expected)) or any(name not in expected for name, _ in found)
            difference = max((abs(value - expected[name]) for name, value in found if name in expected), default=1.0)
            ordered = all(expected[a] >= expected[b] - limit for (a, _), (b, _) in zip(found, found[1:]) if not missing)
            good = not missing and ordered and difference <= limit
            passed = passed and good
            print(f"{'ok  ' if good else 'FAIL'} {image}: {lines[0]}, largest difference of a probability {difference:.1e} of {limit:.0e}")
    sys.exit(0 if passed else 1)


main()
