#!/usr/bin/env python3
"""Stores what nvcc makes of kernels/*.cu in build/images, for builds without a CUDA toolkit.

    python3 scripts/store-images.py            # compile and store
    python3 scripts/store-images.py --check    # compile and compare; exit code 1 if anything differs

The compiler and the assembler are those of NVCC and PTXAS, or those that scripts/install-nvcc.sh installs. Needs the Python
package zstandard. A file of code is kept packed, as NAME.zst; build/stored.rs says what is in it.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

import zstandard

ROOT = pathlib.Path(__file__).resolve().parent.parent
STORED = ROOT / "build" / "images"


def make():
    """What nvcc makes now: files by name."""
    nvcc, ptxas = os.environ.get("NVCC"), os.environ.get("PTXAS")
    if not (nvcc and ptxas):
        nvcc = subprocess.check_output([ROOT / "scripts/install-nvcc.sh"], text=True).strip()
        ptxas = pathlib.Path(nvcc).parent / "older" / "ptxas"
    (ROOT / "target").mkdir(exist_ok=True)
    # A new folder each time: cargo runs the build script again.
    made = tempfile.TemporaryDirectory(prefix="images-", dir=ROOT / "target")
    environment = {**os.environ, "NVCC": nvcc, "PTXAS": str(ptxas), "GGRO_IMAGES_OUT": made.name}
    for variable in ("GGRO_NO_CUDA", "GGRO_CUDA_TARGETS"):
        environment.pop(variable, None)
    # The build script alone does the work, and the library is only checked.
    subprocess.run(["cargo", "check", "--release", "--quiet"], cwd=ROOT, env=environment, check=True)
    with made:
        return {path.name: path.read_bytes() for path in sorted(pathlib.Path(made.name).iterdir())}


def stored():
    """What is stored: files by name, unpacked."""
    files = {}
    for path in sorted(STORED.iterdir()) if STORED.is_dir() else []:
        packed = path.suffix == ".zst"
        content = path.read_bytes()
        files[path.stem + ".code" if packed else path.name] = zstandard.decompress(content) if packed else content
    return files


def store(made):
    STORED.mkdir(exist_ok=True)
    before = stored()
    for old in STORED.iterdir():
        if (old.stem + ".code" if old.suffix == ".zst" else old.name) not in made:
            old.unlink()
    for name, content in made.items():
        # A file whose content is the same stays as it is, so that history grows by what has changed.
        if before.get(name) == content:
            continue
        if name.endswith(".code"):
            (STORED / f"{name.removesuffix('.code')}.zst").write_bytes(zstandard.compress(content, level=22))
        else:
            (STORED / name).write_bytes(content)
    size = sum(path.stat().st_size for path in STORED.iterdir())
    print(f"{STORED.relative_to(ROOT)}: {len(made)} files, {size / 1e6:.2f} MB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with what is stored, and store nothing")
    arguments = parser.parse_args()
    made = make()
    if not arguments.check:
        store(made)
        return
    kept = stored()
    differ = sorted(name for name in made.keys() | kept.keys() if made.get(name) != kept.get(name))
    if differ:
        sys.exit(f"build/images is not what nvcc makes of the sources: {', '.join(differ)}; run scripts/store-images.py")
    print(f"build/images: all {len(made)} files are what nvcc makes of the sources")


if __name__ == "__main__":
    main()
