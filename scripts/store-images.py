#!/usr/bin/env python3
"""Stores what nvcc makes of kernels/*.cu in build/images, for builds without a CUDA toolkit, and the PTX of the emulated device's
own kernels beside them, for its tests.

    python3 scripts/store-images.py            # compile and store
    python3 scripts/store-images.py --check    # compile and compare; exit code 1 if anything differs
    python3 scripts/store-images.py --check --made FOLDER    # the same with what a build has left in GGRO_IMAGES_OUT=FOLDER

The compiler and the assembler are those of NVCC and PTXAS, or those that scripts/install-nvcc.sh installs. Needs the Python
package zstandard. Files are kept packed, code as NAME.zst and what the assembler said as NAME.ptxas.zst; build/stored.rs says what is in
them.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import zstandard

ROOT = pathlib.Path(__file__).resolve().parent.parent
STORED = ROOT / "build" / "images"
EMULATOR = ROOT / "crates" / "emulator" / "kernels"


def tools():
    """nvcc and the assembler."""
    nvcc, ptxas = os.environ.get("NVCC"), os.environ.get("PTXAS")
    if not (nvcc and ptxas):
        nvcc = subprocess.check_output([ROOT / "scripts/install-nvcc.sh"], text=True).strip()
        ptxas = pathlib.Path(nvcc).parent / "older" / "ptxas"
    return nvcc, ptxas


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(pathlib.Path(folder).iterdir())}


def images(nvcc, ptxas):
    """What they make of the project's kernels now: files by name."""
    (ROOT / "target").mkdir(exist_ok=True)
    # A new folder each time: cargo runs the build script again.
    made = tempfile.TemporaryDirectory(prefix="images-", dir=ROOT / "target")
    environment = {**os.environ, "NVCC": nvcc, "PTXAS": str(ptxas), "GGRO_IMAGES_OUT": made.name}
    for variable in ("GGRO_NO_CUDA", "GGRO_CUDA_TARGETS"):
        environment.pop(variable, None)
    # The build script alone does the work, and the library is only checked.
    subprocess.run(["cargo", "check", "--release", "--quiet"], cwd=ROOT, env=environment, check=True)
    with made:
        return files(made.name)


def emulator(nvcc, _):
    """The PTX of the emulated device's kernels, and the hash of their sources that its tests look at (FNV-1a)."""
    sources = sorted([*EMULATOR.glob("*.cu"), *EMULATOR.glob("*.cuh")]) + [ROOT / "kernels" / "ptx.cuh"]
    number = 0xCBF29CE484222325
    for byte in b"".join(path.name.encode() + b"\0" + path.read_bytes() + b"\0" for path in sources):
        number = (number ^ byte) * 0x100000001B3 % 2**64
    made = {"manifest": f"{number:016x}\n".encode()}
    for source in EMULATOR.glob("*.cu"):
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "kernels.ptx"
            options = ["-std=c++17", "-lineinfo", "-O3", "-arch=compute_90a", "-ptx"]
            subprocess.run([nvcc, *options, source, "-o", out], check=True)
            text = out.read_text()
        # Without debug information, and without paths of this machine or hashes of them.
        text = text[: text.find("\t.section")]
        text = re.sub(r'(\.file\s+\d+) "[^"]*/include/', r'\1 "cuda/', text)
        text = re.sub(r'(\.file\s+\d+) "/[^"]*/', r'\1 "', text)
        text = re.sub(r"_INTERNAL_[0-9a-f]{8}", "_INTERNAL_00000000", text)
        made[f"{source.stem}.code"] = text.encode()
    return made


def unpacked_name(path):
    """The name that a stored file has unpacked."""
    if path.suffix != ".zst":
        return path.name
    return path.stem if path.stem.endswith(".ptxas") else path.stem + ".code"


def stored(folder):
    """What is stored: files by name, unpacked."""
    files = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        content = path.read_bytes()
        files[unpacked_name(path)] = zstandard.decompress(content) if path.suffix == ".zst" else content
    return files


def store(folder, made):
    folder.mkdir(exist_ok=True)
    before = stored(folder)
    for old in folder.iterdir():
        if unpacked_name(old) not in made or old.suffix == ".ptxas":
            old.unlink()
    for name, content in made.items():
        packed = name.endswith((".code", ".ptxas"))
        path = folder / (f"{name.removesuffix('.code')}.zst" if packed else name)
        # A file whose content is the same stays as it is, so that history grows by what has changed.
        if before.get(name) != content or not path.exists():
            path.write_bytes(zstandard.compress(content, level=22) if packed else content)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder.relative_to(ROOT)}: {len(made)} files, {size / 1e6:.2f} MB")


def check(folder, made):
    name, kept = folder.relative_to(ROOT), stored(folder)
    differ = sorted(file for file in made.keys() | kept.keys() if made.get(file) != kept.get(file))
    if differ:
        sys.exit(f"{name} is not what nvcc makes of the sources: {', '.join(differ)}; run scripts/store-images.py")
    print(f"{name}: all {len(made)} files are what nvcc makes of the sources")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with what is stored, and store nothing")
    parser.add_argument("--made", metavar="FOLDER", help="take the images from there instead of compiling them")
    arguments = parser.parse_args()
    nvcc, ptxas = tools()
    for folder, make in [(EMULATOR / "ptx", emulator), (STORED, images)]:
        made = files(arguments.made) if arguments.made and make is images else make(nvcc, ptxas)
        (check if arguments.check else store)(folder, made)


if __name__ == "__main__":
    main()
