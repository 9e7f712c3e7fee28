#!/usr/bin/env python3
"""Compares ggro with transformers on a checkpoint of your own: logits, entropies, rewards and the reward's gradient.

    scripts/compare_hf.py --policy DIR --reward DIR [--device cuda] [--text "..." ...]

Needs torch, transformers and safetensors. Both models are run by transformers in float64 (--reference float32 halves the memory) on a
few texts; what they give is written as a golden folder, which `ggro verify` is held to. Printed is the largest deviation of every
quantity beside its bound, and a verdict. Exit code 1 if a bound is broken.

Bounds: on the CPU, which computes in f32 from the stored weights, as below. On CUDA, which rounds to 16 bits, ggro's own: twice
(gradients three times) the error of a simulation of its roundings.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

TEXTS = [
    "Once upon a time, there was a little girl who lost her kite.",
    "Explain in two sentences why the sky is blue at noon and red in the evening.",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))\n",
]

# Largest deviations that f32 sums of a deep model may have from float64: absolute, of gradients relative to their norm.
BOUNDS = {
    "hidden state": 2e-3,
    "logit": 2e-3,
    "entropy": 1e-3,
    "reward": 1e-3,
    "gradient": 1e-3,
    "gradient norm": 1e-3,
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--policy", required=True, help="directory of the policy")
    parser.add_argument("--reward", required=True, help="directory of the reward model")
    parser.add_argument("--ggro", default="target/release/ggro", help="the binary [default: target/release/ggro]")
    parser.add_argument("--device", default="cpu", help="what ggro runs on: cpu, cuda or cuda:N [default: cpu]")
    parser.add_argument("--reference", default="float64", choices=["float64", "float32"], help="arithmetic of transformers")
    parser.add_argument("--text", action="append", help="a text to compare on; may be given several times")
    parser.add_argument("--keep", metavar="DIR", help="keep the golden folder here")
    return parser.parse_args()


def passes(policy, reward, ids):
    """Everything that a forward_N.safetensors holds."""
    import torch

    with torch.no_grad():
        hidden = policy.model(input_ids=ids).last_hidden_state[0]
        logits = policy.lm_head(hidden)
        log_q = torch.log_softmax(logits, -1)
        q = log_q.exp()
        entropy = -(q * log_q).nan_to_num().sum(-1)
        floored = q.clamp(min=1e-9)
        entropy_floored = -(floored * floored.log()).sum(-1)
        rewards = reward.score(reward.model(input_ids=ids).last_hidden_state)[0, :, 0]
    embeddings = reward.get_input_embeddings()(ids).detach().requires_grad_(True)
    last = reward.score(reward.model(inputs_embeds=embeddings).last_hidden_state)[0, -1, 0]
    (gradient,) = torch.autograd.grad(last, embeddings)
    f32 = lambda x: x.to(torch.float32).contiguous()
    f64 = lambda x: x.to(torch.float64).contiguous()
    return {
        "ids": ids[0].to(torch.int64).contiguous(),
        "policy_hidden": f32(hidden),
        "policy_logits": f32(logits),
        "entropy": f64(entropy),
        "entropy_floor_1e-9": f64(entropy_floored),
        "reward_by_position": f64(rewards),
        "reward_grad_last": f32(gradient[0]),
    }


def golden(args, folder):
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    dtype = getattr(torch, args.reference)
    tokenizer = AutoTokenizer.from_pretrained(args.policy)
    load = {"dtype": dtype, "attn_implementation": "eager"}
    policy = AutoModelForCausalLM.from_pretrained(args.policy, **load).eval()
    reward = AutoModelForSequenceClassification.from_pretrained(args.reward, **load).eval()
    for role in ["policy", "reward"]:
        os.symlink(pathlib.Path(getattr(args, role)).resolve(), folder / role)
    (folder / "traces.json").write_text(json.dumps({"model": "compared with transformers", "traces": []}))
    for number, text in enumerate(args.text or TEXTS):
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=True).input_ids
        tensors = passes(policy, reward, ids)
        save_file(tensors, str(folder / f"forward_{number}.safetensors"))
        print(f"text {number}: {ids.shape[1]} tokens, reward {float(tensors['reward_by_position'][-1]):.4f}", file=sys.stderr)


def verdicts(args, folder):
    command = [args.ggro, "verify", "--json", "--device", args.device, str(folder)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode not in (0, 1):
        sys.exit(f"{' '.join(command)}: {run.stderr.strip()}")
    worst = {}
    for check in json.loads(run.stdout)["folders"][0]["checks"]:
        for one in check["deviations"]:
            name, value, share = one["quantity"], one["worst"], one["share"]
            value = float("nan") if value is None else value
            if args.device == "cpu":
                share = value / BOUNDS.get(name, 1e-3)
            share = float("nan") if share is None else share
            known = worst.get(name)
            # A NaN is above everything.
            if known is None or not share <= known[1]:
                worst[name] = (value, share)
    return worst


def main():
    args = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(args.keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        golden(args, folder)
        worst = verdicts(args, folder)
    if not worst:
        sys.exit("ggro compared nothing")
    good = True
    for name, (value, share) in worst.items():
        fine = share <= 1.0
        good = good and fine
        print(f"{name:<20} off by {value:.2e} at most, {share:.3f} of the bound  {'ok' if fine else 'BROKEN'}")
    print("ggro and transformers agree" if good else "ggro and transformers differ")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
