#!/usr/bin/env bash
# Installs NVIDIA's CUDA compiler in .cuda/ of this repository, where the build finds it: 97 MB from PyPI, without root. Needs
# python3 with pip and, like every nvcc, a g++ of at most version 15. Does nothing if the compiler is installed already.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

packages=(nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96)
target=.cuda

next_step() {
    # The build script does not watch a folder that may not exist.
    touch build/cuda.rs
    if ! command -v "${NVCC_CCBIN:-g++}" >/dev/null; then
        echo "nvcc needs a C++ compiler, and g++ was not found; install it (apt install g++)" >&2
    fi
    echo "next: cargo build --release"
}

if [ "$(cat "$target/packages" 2>/dev/null)" = "${packages[*]}" ] && "$target/bin/nvcc" --version >/dev/null 2>&1; then
    echo "$target/bin/nvcc is installed already: $("$target/bin/nvcc" --version | grep -o 'release .*')"
    next_step
    exit 0
fi

python3 -m pip --version >/dev/null 2>&1 || {
    echo "python3 has no pip; install it (apt install python3-pip, or python3 -m ensurepip --user)" >&2
    exit 1
}

unfinished=$(mktemp -d "$PWD/.cuda-unfinished.XXXXXX")
trap 'rm -rf "$unfinished"' EXIT

# If the index that pip is configured for lacks the packages, PyPI itself is tried.
download() {
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --progress-bar off \
        --dest "$unfinished/wheels" "$@" "${packages[@]}"
}
if ! download; then
    echo "trying https://pypi.org instead of pip's configured index" >&2
    unset PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS PIP_NO_INDEX
    export PIP_CONFIG_FILE=/dev/null
    download --index-url https://pypi.org/simple
fi

python3 - "$unfinished" <<'PYTHON'
import pathlib
import sys
import zipfile

unfinished = pathlib.Path(sys.argv[1])
for wheel in sorted((unfinished / "wheels").glob("*.whl")):
    with zipfile.ZipFile(wheel) as archive:
        # `extractall` keeps members inside the folder, but forgets that some are programs.
        archive.extractall(unfinished / "unpacked")
toolkits = list((unfinished / "unpacked/nvidia").glob("cu*/bin/nvcc"))
if len(toolkits) != 1:
    sys.exit(f"expected 1 nvcc in the packages, found {len(toolkits)}")
toolkit = toolkits[0].parent.parent
for folder in ("bin", "nvvm/bin"):
    for program in (toolkit / folder).iterdir():
        if program.is_file():
            program.chmod(program.stat().st_mode | 0o755)
toolkit.rename(unfinished / "toolkit")
PYTHON

"$unfinished/toolkit/bin/nvcc" --version | tail -n 1
printf '%s\n' "${packages[*]}" >"$unfinished/toolkit/packages"
rm -rf "$target"
mv "$unfinished/toolkit" "$target"
du -sh "$target"
next_step
