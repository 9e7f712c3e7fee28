#!/usr/bin/env python3
"""ggro beside what others would use, in one run on one machine: a table with ratios.

    python3 bench/peers/peers.py [--ggro target/release/ggro] [--policy DIR --reward DIR] [--device cpu|cuda] [-o md|json]

Needs torch and transformers; without --policy and --reward it takes the demo pair of assets/demo. Rows:

    answer     a whole response by the method: plain PyTorch (plain_ggro.py) against ggro, which must write the same ids (on CUDA, where both
               round to 16 bits, the share of equal ids is printed)
    greedy     the same for plain greedy decoding
    prefill, decode, reward, gradient
               a pass of transformers' models with their caches; autograd for the gradient; on CUDA decode also with a static cache in
               a CUDA graph
    gemm, attention   on CUDA: torch.matmul (cuBLASLt) and scaled_dot_product_attention (flash) at the shapes of `ggro kernels bench`

A ratio is the peer's time over ggro's: above 1 ggro is faster. Times are medians of --runs.
"""

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
MESSAGE = "Tell me a story about a box."


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    root = pathlib.Path(__file__).resolve().parents[2]
    parser.add_argument("--ggro", default=str(root / "target/release/ggro"), help="the binary")
    parser.add_argument("--policy", default=str(root / "assets/demo/policy"), help="directory of the policy")
    parser.add_argument("--reward", default=str(root / "assets/demo/reward"), help="directory of the reward model")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--message", default=MESSAGE, help="what is answered")
    parser.add_argument("--tokens", type=int, default=96, help="new tokens of an answer")
    parser.add_argument("--threshold", type=float, default=3.25, help="entropy that ends a segment, in nats")
    parser.add_argument("--candidates", type=int, default=8, help="candidates of a segment")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each case")
    parser.add_argument("--context", type=int, default=256, help="positions before decode steps and segments")
    parser.add_argument("--rows", default="1,8", help="rows of decode steps")
    parser.add_argument("-o", "--output", default="md", choices=["md", "json"])
    return parser.parse_args()


def ggro(args, *words):
    """Rows of a benchmark of ggro, and its header."""
    command = [args.ggro, "bench", *words, "-o", "json", "--device", args.device, "--runs", str(args.runs), "--no-limits"]
    command += ["--policy", args.policy, "--reward", args.reward]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    report = json.loads(done.stdout)
    return report["header"], report["rows"]


class Clock:
    """Times calls, with everything that a caller waits for."""

    def __init__(self, device, runs):
        self.device, self.runs = device, runs

    def __call__(self, call):
        import torch

        times = []
        for _ in range(self.runs + 1):
            started = time.perf_counter()
            result = call()
            if self.device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        return statistics.median(times[1:]), result


def hash_of(ids):
    value = 0xCBF29CE484222325
    for token in ids:
        value = ((value ^ token) * 0x100000001B3) & (2**64 - 1)
    return f"{value:016x}"


def load(args):
    import torch
    import transformers

    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    policy = transformers.AutoModelForCausalLM.from_pretrained(args.policy, dtype=dtype).to(args.device).eval()
    reward = transformers.AutoModelForSequenceClassification.from_pretrained(args.reward, dtype=dtype).to(args.device).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.policy)
    return policy, reward, tokenizer


def answers(args, policy, reward, tokenizer, clock):
    """Whole responses by the method, and greedily."""
    from plain_ggro import Options, Plain

    message = [{"role": "user", "content": args.message}]
    text = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer.encode(text, add_special_tokens=False)
    plain = Plain(policy, reward)
    # No id ends an answer, as in the benchmark: both write all tokens.
    options = Options(args.tokens, args.threshold, -1, [-1], max_candidates=args.candidates)
    words = ["ggro", "--message", args.message, "--tokens", str(args.tokens), "--entropy-threshold", str(args.threshold)]
    words += ["--candidates", str(args.candidates), "--best-of", "0", "--speculation", "auto"]
    header, rows = ggro(args, *words)
    ours = {row["phase"]: row for row in rows}
    seconds, answer = clock(lambda: plain.generate(prompt, options))
    greedy_seconds, greedy = clock(lambda: plain.greedy(prompt, args.tokens))
    for name, peer, ids in [("greedy", greedy_seconds, greedy), ("ggro", seconds, answer.ids)]:
        row = ours[name]
        same = hash_of(ids) == row["ids"]
        note = "the same ids" if same else "other ids"
        if name == "ggro":
            note += f", {answer.segments} segments, {answer.visited} candidates, reward {answer.reward:.3f}"
        label = "answer by the method" if name == "ggro" else "greedy answer"
        yield label, f"{args.tokens} tokens", "plain PyTorch", peer, row["seconds"], note, same or args.device == "cuda"
    yield "header", header, None, None, None, None, True


def passes(args, policy, reward, clock):
    """Passes of transformers' models."""
    import torch
    from transformers import DynamicCache

    rows = [int(row) for row in args.rows.split(",")]
    context, segment, candidates = args.context, 16, [1, 8]
    words = ["latency", "--rows", args.rows, "--context", str(context), "--prefill", str(context), "--segment", str(segment)]
    words += ["--candidates", ",".join(map(str, candidates)), "--prefix", str(context)]
    _, ours = ggro(args, *words)

    def found(phase, case):
        times = [row["seconds"] for row in ours if row["phase"] == phase and row["case"] == case]
        return min(times) if times else None

    device = policy.device
    ids = torch.arange(context, device=device)[None] * 7919 % policy.config.vocab_size
    with torch.no_grad():
        seconds, _ = clock(lambda: policy(input_ids=ids, use_cache=True, logits_to_keep=1).logits.argmax(-1).tolist())
        yield "prefill", f"{context} tokens", "transformers", seconds, found("prefill", f"{context} tokens"), "", True
        for count in rows:
            cache = DynamicCache()
            policy(input_ids=ids.repeat(count, 1), past_key_values=cache, use_cache=True, logits_to_keep=1)
            step = ids[:, :1].repeat(count, 1)

            def decode():
                out = policy(input_ids=step, past_key_values=cache, use_cache=True)
                chosen = out.logits.argmax(-1).tolist()
                cache.crop(-1)
                return chosen

            seconds, _ = clock(decode)
            case = f"{count} rows behind {context}"
            yield "decode", case, "transformers, dynamic cache", seconds, found("decode", case), "", True
            if args.device == "cuda":
                seconds = graphed(policy, ids, count, clock)
                yield "decode", case, "transformers, static cache in a CUDA graph", seconds, found("decode", case), "", True
    yield from rewards(reward, ids, segment, candidates, context, found, clock)


def graphed(policy, ids, count, clock):
    """A decode step with a static cache, recorded once and replayed."""
    import torch
    from transformers import StaticCache

    context = ids.shape[1]
    cache = StaticCache(config=policy.config, max_cache_len=context + 8)
    policy(input_ids=ids.repeat(count, 1), past_key_values=cache, use_cache=True, logits_to_keep=1)
    step, at = ids[:, :1].repeat(count, 1).clone(), torch.tensor([context], device=ids.device)

    def run():
        return policy(input_ids=step, past_key_values=cache, cache_position=at, use_cache=True).logits.argmax(-1)

    for _ in range(3):
        run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chosen = run()
    return clock(lambda: (graph.replay(), chosen.tolist()))[0]


def rewards(reward, ids, segment, candidates, context, found, clock):
    """Segments behind a prefix whose keys and values are kept: scored, and differentiated by autograd."""
    import torch
    from transformers import DynamicCache

    for weights in reward.parameters():
        weights.requires_grad_(False)
    embedding = reward.get_input_embeddings()
    listed = torch.arange(25, device=ids.device)
    for count in candidates:
        kept = DynamicCache()
        with torch.no_grad():
            reward.model(input_ids=ids.repeat(count, 1), past_key_values=kept, use_cache=True)
        tail = (torch.arange(count * segment, device=ids.device) * 7919 % reward.config.vocab_size).view(count, segment)

        def score(grad):
            embedded = embedding(tail).detach().requires_grad_(grad)
            with torch.set_grad_enabled(grad):
                hidden = reward.model(inputs_embeds=embedded, past_key_values=kept, use_cache=True).last_hidden_state
                values = reward.score(hidden[:, -1])[:, 0].float()
                if grad:
                    (gradient,) = torch.autograd.grad(values.sum(), embedded)
                    products = embedding.weight[listed].float() @ gradient[:, 0].float().T
                    products.tolist()
                values = values.tolist()
            kept.crop(-segment)
            return values

        case = f"{count} x {segment} tokens behind {context}"
        seconds, _ = clock(lambda: score(False))
        yield "reward", case, "transformers", seconds, found("reward", case), "", True
        seconds, _ = clock(lambda: score(True))
        yield "gradient", case, "autograd", seconds, found("gradient", case), "", True


def kernels(args):
    """On CUDA: single operations at the shapes of `ggro kernels bench`."""
    import torch

    done = subprocess.run([args.ggro, "kernels", "bench", "--json"], capture_output=True, text=True, check=True)
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

            yield "attention", row["case"], "PyTorch SDPA", device_seconds(attend), row["seconds"], "", True
        numbers = [int(number) for number in re.findall(r"\d+", row["case"].replace("bf16", ""))]
        if row["op"] == "gemm" and len(numbers) >= 3:
            m, n, k = numbers[:3]
            x, w = torch.randn(m, k, device="cuda").bfloat16(), torch.randn(n, k, device="cuda").bfloat16()
            yield "gemm", row["case"], "cuBLASLt", device_seconds(lambda: torch.nn.functional.linear(x, w)), row["seconds"], "", True


def device_seconds(call):
    """Seconds on the device, by events, with nothing else between."""
    import torch

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
    args = arguments()
    import torch
    import transformers

    policy, reward, tokenizer = load(args)
    clock = Clock(args.device, args.runs)
    rows, header, sound = [], {}, True
    sources = [answers(args, policy, reward, tokenizer, clock), passes(args, policy, reward, clock)]
    if args.device == "cuda":
        sources.append(kernels(args))
    for source in sources:
        for phase, case, peer, theirs, ours, note, fine in source:
            if phase == "header":
                header = case
                continue
            sound &= fine
            ratio = theirs / ours if ours else float("nan")
            rows.append({"phase": phase, "case": case, "peer": peer, "seconds": theirs, "ggro": ours, "ratio": ratio, "note": note})
            print(f"{phase}, {case}: {peer} {1e3 * theirs:.2f} ms, ggro {1e3 * (ours or 0):.2f} ms", file=sys.stderr)
    about = {"torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads(), **header}
    if args.output == "json":
        print(json.dumps({"header": about, "rows": rows}, indent=1))
    else:
        print(f"ggro {about.get('version')} ({about.get('commit')}), torch {about['torch']}, transformers {about['transformers']}; ", end="")
        print(f"{about.get('device')}, {about.get('units')} units, {args.device}\n")
        print("| phase | case | peer | peer ms | ggro ms | peer over ggro | |\n|---|---|---|---|---|---|---|")
        for row in rows:
            times = f"{1e3 * row['seconds']:.2f} | {1e3 * (row['ggro'] or float('nan')):.2f} | {row['ratio']:.2f}"
            print(f"| {row['phase']} | {row['case']} | {row['peer']} | {times} | {row['note']} |")
    if not sound:
        sys.exit("the answers differ")


if __name__ == "__main__":
    main()
