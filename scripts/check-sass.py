#!/usr/bin/env python3
"""Looks at the machine code of the kernels for Hopper: what their inner loops are made of, which no test sees that only looks at
results.

    python3 scripts/check-sass.py --made FOLDER    # FOLDER is what a build with nvcc has left in GGRO_IMAGES_OUT

Prints a line per kernel; exit code 1 if one is not what it should be. Needs cuobjdump and nvdisasm, which the Python packages
nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm have.
"""

import argparse
import collections
import pathlib
import re
import subprocess
import sys
import sysconfig
import tempfile

INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)\s*([^;]*);")


def cuobjdump():
    """The tool in this Python's packages, else the one on the path."""
    for tool in sorted(pathlib.Path(sysconfig.get_paths()["purelib"]).glob("nvidia/cu*/bin/cuobjdump")):
        # The wheels of some releases lose the executable bits.
        for name in ("cuobjdump", "nvdisasm"):
            tool.with_name(name).chmod(0o755)
        return str(tool)
    return "cuobjdump"


def machine_code(path):
    """The code for sm_90a of an image: the first target's of a file for Hopper alone, else the second's."""
    line, rest = path.read_bytes().split(b"\n", 1)
    lengths = [int(length) for length in line.split()]
    index = 0 if path.stem.endswith("_sm90") else 1
    return rest[sum(lengths[:index]) : sum(lengths[: index + 1])]


def kernels(path):
    """Lists of (address, name, operands) by kernel."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = pathlib.Path(folder) / "kernels.cubin"
        cubin.write_bytes(machine_code(path))
        tool = cuobjdump()
        done = subprocess.run([tool, "-sass", cubin], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{tool}: {done.stderr}")
    found, current = {}, None
    for line in done.stdout.splitlines():
        if "Function :" in line:
            current = found.setdefault(line.split(":", 1)[1].strip(), [])
        elif (match := INSTRUCTION.match(line)) and current is not None:
            current.append((int(match[1], 16), match[2], match[3].strip()))
    return found


def loops_with(code, name):
    """All loops that have such an instruction, the shortest first."""
    loops = []
    for address, opcode, operands in code:
        target = re.search(r"0x([0-9a-f]+)$", operands)
        if opcode.split(".")[0] == "BRA" and target and int(target[1], 16) <= address:
            body = [entry for entry in code if int(target[1], 16) <= entry[0] <= address]
            if any(opcode.startswith(name) for _, opcode, _ in body):
                loops.append(body)
    return sorted(loops, key=len)


def check_product(name, code):
    """A product by wgmma: what is wrong, and what there is."""
    tokens = int(re.search(r"sm90_(\d+)_", name)[1])
    loop = next(iter(loops_with(code, "HGMMA")), [])
    all_of = collections.Counter(opcode.split(".")[0] for _, opcode, _ in code)
    products = [(opcode, operands) for _, opcode, operands in loop if opcode.startswith("HGMMA")]
    wrong = []

    def expect(right, words):
        if not right:
            wrong.append(words)

    expect(len(products) == 4, f"{len(products)} products in the loop over tiles of 64 terms, expected 4")
    shape = f"HGMMA.64x{tokens}x16"
    expect(all(opcode.startswith(shape) for opcode, _ in products), f"products are not {shape}")
    across = "backward" in name
    expect(all(("tnspA" in opcode + operands) == across for opcode, operands in products), "the weights' layout")
    waits = [operands for _, opcode, operands in loop if opcode.startswith("WARPGROUP.DEPBAR")]
    expect(waits == ["gsb0, 0x1"], f"waits in the loop: {waits}, expected one that leaves a group on its way")
    for opcode in ("LDSM", "LDS", "STS", "LDG", "STG", "BAR"):
        expect(not any(entry[1].split(".")[0] == opcode for entry in loop), f"{opcode} in the loop")
    for opcode in ("LDL", "STL", "LDSM"):
        expect(all_of[opcode] == 0, f"{opcode}")
    for opcode, count in (("UTMALDG", 1), ("UBLKCP", 1), ("USETMAXREG", 2)):
        expect(all_of[opcode] >= count, f"{all_of[opcode]} {opcode}, expected {count} at least")
    # Both warpgroups issue the loop while the tensor core has 4 N cycles of work: for few tokens it waits for memory anyway.
    expect(len(loop) <= 128, f"{len(loop)} instructions in the loop")
    # Cycles of a step of 64 terms: shared memory moves 128 bytes in one, the tensor core adds 2048 products.
    weights, lines = 2 * 64 * 64 * 2, tokens * 64 * 2
    reads = weights + 2 * lines
    shared, tensor = (reads + weights + lines) / 128, 2 * 64 * tokens * 64 / 2048
    expect(tokens < 192 or shared <= 1.1 * tensor, f"shared memory needs {shared / tensor:.2f} of the tensor core's cycles")
    said = f"{len(loop):4} instructions a step, shared memory {shared:5.0f} cycles, tensor core {tensor:5.0f}"
    return wrong, said


def check_attention(name, code):
    """Attention by wgmma: what is wrong, and what there is."""
    head = int(re.search(r"sm90_(\d+)_", name)[1])
    # The loop over pages that all rows of a tile see.
    output = f"HGMMA.64x{head}x16"
    loop = next((body for body in loops_with(code, "HGMMA") if sum(op.startswith("HGMMA") for _, op, _ in body) == head // 16 + 4), [])
    all_of = collections.Counter(opcode.split(".")[0] for _, opcode, _ in code)
    wrong = []

    def expect(right, words):
        if not right:
            wrong.append(words)

    products = [(opcode, operands) for _, opcode, operands in loop if opcode.startswith("HGMMA")]
    scores, outputs = products[: head // 16], products[head // 16 :]
    expect(loop, f"no loop has {head // 16 + 4} products")
    expect(all(opcode.startswith("HGMMA.64x64x16") and "tnsp" not in operands for opcode, operands in scores), "the scores' products")
    expect(all(opcode.startswith(output) and "tnspB" in operands for opcode, operands in outputs), "the output's products")
    expect(not any("gdesc" in operands.split(",")[1] for _, operands in products), "operand A is not in registers")
    waits = [(address, operands) for address, opcode, operands in loop if opcode.startswith("WARPGROUP.DEPBAR")]
    expect([operands for _, operands in waits] == ["gsb0, 0x1", "gsb0, 0x0"], f"waits in the loop: {waits}")
    if len(waits) == 2:
        between = [opcode for address, opcode, _ in loop if waits[0][0] < address < waits[1][0]]
        made = sum(opcode.startswith("MUFU.EX2") for opcode in between)
        # 32 of a lane, and two that rescale.
        expect(made >= 34, f"{made} exponentials before the wait for the output, expected 34")
    for opcode in ("LDL", "STL"):
        expect(all_of[opcode] == 0, f"{opcode}")
    for opcode, count in (("UTMALDG", head // 64 * 2), ("USETMAXREG", 2)):
        expect(all_of[opcode] >= count, f"{all_of[opcode]} {opcode}, expected {count} at least")
    # With the mask and the end of a chunk, which most pages do not need.
    expect(len(loop) <= 1200, f"{len(loop)} instructions in the loop")
    exponentials = 64 * 64 / 16
    tensor, shared = 4 * 64 * 64 * head / 4096, (2 * 64 * head * 2 + 64 * head * 2 + 64 * head * 2) / 128
    said = f"{len(loop):4} instructions a page, shared memory {shared:5.0f} cycles, tensor core {tensor:5.0f}, exponentials {exponentials:4.0f}"
    return wrong, said


# Instructions that touch global memory, and those by which products ask for weights before they wait.
TOUCHES = ("LDG", "STG", "LD", "ST", "ATOM", "ATOMG", "RED", "REDG", "LDGSTS", "UBLKCP", "UTMALDG", "UTMASTG")
WEIGHTS = {"gemm": ("LDGSTS",), "gemm_backward": ("LDGSTS",), "gemm_sm90": ("UBLKCP",)}


def check_wait(image, code):
    """What is wrong with a kernel's wait for the kernels before it: what the assembler has put in front of it."""
    names = [opcode.split(".")[0] for _, opcode, _ in code]
    if "ACQBULK" not in names or "PREEXIT" not in names:
        return ["no wait for the kernels before this one, or it does not let the next one begin"]
    touched = set(names[: names.index("ACQBULK")]) & set(TOUCHES) - set(WEIGHTS.get(image, ()))
    return [f"{opcode} before the wait" for opcode in sorted(touched)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--made", metavar="FOLDER", type=pathlib.Path, required=True)
    folder = parser.parse_args().made
    failed = False
    for image, check, expected in (("gemm_sm90", check_product, 40), ("attention_sm90", check_attention, 4)):
        found = sorted(kernels(folder / f"{image}.code").items())
        for name, code in found:
            wrong, said = check(name, code)
            failed |= bool(wrong)
            print(f"{name:28} {said}  {'; '.join(wrong) or 'ok'}")
        if len(found) != expected:
            sys.exit(f"{len(found)} kernels in {image}, expected {expected}")
    waits = 0
    for path in sorted(folder.glob("*.code")):
        for name, code in sorted(kernels(path).items()):
            wrong = check_wait(path.stem, code)
            failed |= bool(wrong)
            waits += 1
            if wrong:
                print(f"{name:28} {'; '.join(wrong)}")
    print(f"{waits} kernels wait for those before them")
    if failed:
        sys.exit("machine code is not what it should be")


if __name__ == "__main__":
    main()
