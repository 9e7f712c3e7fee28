#!/usr/bin/env python3
"""ggro's products beside cuBLASLt's, which PyTorch calls: a table with ratios.

    ggro kernels bench --op gemm --json >gemm.jsonl
    python3 bench/peers/gemm.py gemm.jsonl [-o md|json]

Needs torch with CUDA. Both read weights that no cache holds: the weights of a shape lie there several times, one after the other, together
larger than the L2 cache. A ratio is cuBLASLt's time over ggro's: above 1 ggro is faster. The times of both are of events around many
launches, so neither has the host's part in it; the clocks are what they are at that moment.
"""

import argparse
import json
import re
import statistics
import sys


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", help="what `ggro kernels bench --op gemm --json` printed")
    parser.add_argument("-o", "--output", default="md", choices=["md", "json"])
    return parser.parse_args()


def shapes(path):
    """Tokens, outputs, terms and ggro's seconds of every product in the file."""
    for line in open(path, encoding="utf-8"):
        row = json.loads(line)
        sizes = re.search(r"\[(\d+), (\d+), (\d+)\]", row["case"])
        if row["op"] == "gemm" and sizes:
            yield *map(int, sizes.groups()), row["seconds"]


def peer(torch, tokens, n, k):
    """Seconds of a product by cuBLASLt: the median of several rounds over all copies of the weights."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    copies = min(16, max(2, 2 * cache // (2 * n * k) + 1))
    x = torch.randn(tokens, k, device="cuda").bfloat16()
    weights = [(torch.randn(n, k, device="cuda") * 0.02).bfloat16() for _ in range(copies)]
    out = torch.empty(tokens, n, device="cuda", dtype=torch.bfloat16)
    rounds = max(2, 24 // copies)

    def run():
        for _ in range(rounds):
            for w in weights:
                torch.mm(x, w.t(), out=out)

    run()
    times = []
    for _ in range(5):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # Work in front of the first event, so that the launches are queued before it is reached.
        torch.cuda._sleep(2_000_000)
        first.record()
        run()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last) / 1e3 / (rounds * copies))
    return statistics.median(times)


def main():
    args = arguments()
    try:
        import torch
    except ImportError:
        sys.exit("there is no torch")
    if not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device")
    rows = []
    for tokens, n, k, ours in shapes(args.file):
        theirs = peer(torch, tokens, n, k)
        rows.append({"tokens": tokens, "n": n, "k": k, "ggro": ours, "cublaslt": theirs, "ratio": theirs / ours})
    if not rows:
        sys.exit(f"{args.file} has no products")
    about = {"torch": torch.__version__, "cuda": torch.version.cuda, "card": torch.cuda.get_device_name(0)}
    if args.output == "json":
        print(json.dumps({"about": about, "rows": rows}, indent=1))
        return
    print(f"{about['card']}, torch {about['torch']}, CUDA {about['cuda']}; bf16\n")
    print("| tokens | n | k | ggro us | cuBLASLt us | ggro TFLOP/s | cuBLASLt over ggro |\n|---|---|---|---|---|---|---|")
    for row in rows:
        work = 2e-12 * row["tokens"] * row["n"] * row["k"]
        times = f"{1e6 * row['ggro']:.1f} | {1e6 * row['cublaslt']:.1f} | {work / row['ggro']:.0f}"
        print(f"| {row['tokens']} | {row['n']} | {row['k']} | {times} | {row['ratio']:.2f} |")
    mean = statistics.geometric_mean(row["ratio"] for row in rows)
    print(f"\nGeometric mean of the ratios: {mean:.2f}")


if __name__ == "__main__":
    main()
