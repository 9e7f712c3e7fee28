#!/usr/bin/env python3
"""Single operations on a GPU: torch.matmul (cuBLASLt) and scaled_dot_product_attention (flash) at the shapes of `ggro kernels bench`.

    python3 bench/peers/cuda_kernels.py GGRO

Prints a JSON object per operation. peers.py runs it with --device cuda.
"""

import json
import re
import subprocess
import sys

import torch


def kernels(binary):
    """On CUDA: single operations at the shapes of `ggro kernels bench`."""
    done = subprocess.run([binary, "kernels", "bench", "--json"], capture_output=True, text=True, check=True)
    for row in map(json.loads, done.stdout.splitlines()):
        shape = re.search(r"(\d+) x (\d+) of (\d+) \+ (\d+)", row["case"])
        if row["op"] == "attention" and shape:
            # Branches that share a prefix are sequences of their own to PyTorch.
            count, queries, shared, own = map(int, shape.groups())
            q, k = (torch.randn(count, heads, length, 128, device="cuda").bfloat16()
                    for heads, length in ((32, queries), (8, shared + own)))
            # One query sees all keys; several see those before them, at the end of the text.
            mask = None
            if queries > 1 and queries != shared + own:
                mask = torch.ones(queries, shared + own, device="cuda", dtype=torch.bool).tril(shared + own - queries)
            causal = queries == shared + own

            def attend():
                return torch.nn.functional.scaled_dot_product_attention(
                    q, k, k, attn_mask=mask, is_causal=causal and queries > 1, enable_gqa=True)

            yield "attention", row["case"], "PyTorch SDPA", device_seconds(attend), row["seconds"]
        numbers = [int(number) for number in re.findall(r"\d+", row["case"].replace("bf16", ""))]
        if row["op"] == "gemm" and len(numbers) >= 3:
            m, n, k = numbers[:3]
            x, w = torch.randn(m, k, device="cuda").bfloat16(), torch.randn(n, k, device="cuda").bfloat16()
            yield "gemm", row["case"], "cuBLASLt", device_seconds(lambda: torch.nn.functional.linear(x, w)), row["seconds"]


def device_seconds(call):
    """Seconds on the device, by events, with nothing else between."""
    for _ in range(3):
        call()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(20):
        call()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 20e3


def main():
    for op, case, peer, theirs, ours in kernels(sys.argv[1]):
        print(json.dumps({"phase": op, "case": case, "peer": peer, "peer_seconds": theirs, "seconds": ours}), flush=True)


if __name__ == "__main__":
    main()
