#!/usr/bin/env python3
"""Random configurations of all families: the same numbers as transformers in float64, or a refusal.

    scripts/random_configs.py [--count 200] [--seed 1] [--ggro target/release/ggro]

Needs torch, transformers, safetensors and tokenizers. Each case is a policy and a reward model of one family, of a tiny random shape
with random weights. Keys are left out of config.json at random, set to null, or written in another way that is in use; tensors are
saved under names as they are found in practice. transformers loads the directory as it is and computes in float64; `ggro verify` is held
to its numbers. A case agrees, or ggro refuses it; that ggro accepts what transformers does not load is counted, not judged. Exit code 1
if numbers differ or ggro refuses what it is documented to read.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import compare_hf  # noqa: E402

VOCABULARY = 96
FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]
CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}

# Largest deviations, of f32 sums from float64 in models as small as these: absolute, of gradients relative to their norm. A norm over
# two numbers loses digits of a gradient.
BOUND = 2e-4
GRADIENT_BOUND = 2e-3


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=200, help="cases [default: 200]")
    parser.add_argument("--seed", type=int, default=1, help="[default: 1]")
    parser.add_argument("--only", type=int, help="run this case alone")
    parser.add_argument("--ggro", default="target/release/ggro", help="the binary [default: target/release/ggro]")
    parser.add_argument("--verbose", action="store_true", help="print every case")
    parser.add_argument("--keep", metavar="DIR", help="keep the directories of cases that differ here")
    return parser.parse_args()


def tokenizer(folder):
    """One token for each of a few words."""
    words = {f"w{i}": i for i in range(VOCABULARY)}
    file = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(file))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "w2"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def shape(draw, family):
    """A config that says everything, and fits the defaults of keys that may be left out."""
    heads = draw.choice([1, 2, 4, 8, 32])
    kv_heads = draw.choice([n for n in (1, 2, 4, 8, 32) if heads % n == 0])
    head_dim = draw.choice([2, 4, 8, 16, 128] if family == "qwen3" else [2, 4, 8, 16])
    hidden = heads * draw.choice([2, 4, 8])
    layers = draw.choice([1, 2, 3])
    config = {
        "model_type": family,
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": draw.choice([8, 24, 33]),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": draw.choice(["silu", "silu", "swish"]),
        "max_position_embeddings": draw.choice([64, 512, 2048]),
        "rms_norm_eps": draw.choice([1e-6, 1e-5, 1e-3]),
        "tie_word_embeddings": draw.random() < 0.4,
        "eos_token_id": draw.choice([2, [2, 3], None]),
        "pad_token_id": draw.choice([None, 5, -1]),
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "rope_theta": draw.choice([10000.0, 500000.0, 100.0]),
    }
    if family in ("llama", "qwen3"):
        config["attention_bias"] = draw.random() < 0.4
    if family == "llama":
        config["mlp_bias"] = draw.random() < 0.3
    if family == "mistral":
        config["sliding_window"] = draw.choice([None, 3, 5, 4096])
    if family in ("qwen2", "qwen3"):
        config["use_sliding_window"] = draw.random() < 0.5
        config["sliding_window"] = draw.choice([None, 3, 5])
        config["max_window_layers"] = draw.choice([0, 1, 2, 28])
        if draw.random() < 0.2:
            windows = config["use_sliding_window"] and config["sliding_window"] is not None
            kinds = ["full_attention", "sliding_attention"] if windows else ["full_attention"]
            config["layer_types"] = [draw.choice(kinds) for _ in range(layers)]
    scaling = draw.choice([None, None, "llama3", "llama3 old", "default", "linear"])
    if scaling:
        rope = {"rope_type": scaling.split()[0]}
        if scaling.startswith("llama3"):
            rope |= {"factor": draw.choice([2.0, 8.0]), "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": draw.choice([16, 32])}
        if scaling == "linear":
            rope["factor"] = 1.0
        if scaling == "llama3 old":
            rope["type"] = rope.pop("rope_type")
        if draw.random() < 0.3:
            rope["rope_theta"] = draw.choice([10000.0, 777.0])
            config["rope_parameters"] = rope
            if draw.random() < 0.7:
                del config["rope_theta"]
        else:
            config["rope_scaling"] = rope
    return config


def omit(draw, family, config):
    """Leaves keys out, or makes them null, where a tiny model can live with the default."""
    omitted = []
    # An absent number of key/value heads is refused by both unless it divides the others.
    kv_heads = {"llama": config["num_attention_heads"], "mistral": 8, "qwen2": 32, "qwen3": 32}[family]
    rarely = {"num_key_value_heads"} if config["num_attention_heads"] % kv_heads else set()
    nulls = ["num_key_value_heads", "sliding_window", "rope_scaling", "pad_token_id"] + ["head_dim"] * (family in ("llama", "mistral"))
    keep = {"model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "layer_types"}
    for key in sorted(config):
        if key in keep:
            continue
        if draw.random() < (0.02 if key in rarely else 0.2):
            del config[key]
            omitted.append(key)
        elif key in nulls and draw.random() < 0.1:
            config[key] = None
            omitted.append(f"{key}=null")
    return omitted


def model_class(family, reward):
    import transformers

    return getattr(transformers, CLASSES[family] + ("ForSequenceClassification" if reward else "ForCausalLM"))


def save(draw, folder, family, reward, config, torch, save_file):
    """Random weights for what transformers makes of the config, saved under some names; the names' style."""
    import transformers

    folder.mkdir()
    name = CLASSES[family] + ("ForSequenceClassification" if reward else "ForCausalLM")
    config = dict(config)
    config["architectures"] = draw.choice([[name]] * 6 + [None])
    if reward:
        labels = draw.choice(["num_labels", "id2label"])
        config[labels] = 1 if labels == "num_labels" else {"0": "LABEL_0"}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer(folder)
    read = transformers.AutoConfig.from_pretrained(folder)
    generator = torch.Generator().manual_seed(draw.randrange(1 << 30))
    with torch.device("meta"):
        bare = model_class(family, reward)(read)
    dtype = draw.choice([torch.float32, torch.bfloat16, torch.float16])
    tensors = {}
    for key, meta in bare.state_dict().items():
        scale = 1.0 / max(1, meta.shape[-1]) ** 0.5 if meta.dim() > 1 else 0.2
        values = torch.randn(meta.shape, generator=generator) * scale + (1.0 if key.endswith("norm.weight") else 0.0)
        tensors[key] = values.to(dtype)
    style = draw.choice(["plain"] * 4 + ["bare", "extra", "untied"])
    if not reward and read.tie_word_embeddings:
        if style == "untied":
            tensors["lm_head.weight"] = torch.randn(tensors["lm_head.weight"].shape, generator=generator).to(dtype)
        else:
            tensors.pop("lm_head.weight", None)
    if style == "bare":
        tensors = {key.removeprefix("model."): value for key, value in tensors.items()}
    if style == "extra":
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        tensors["model.layers.7.mlp.gate_proj.weight"] = torch.ones(4, 4)
    save_file({key: value.contiguous() for key, value in tensors.items()}, str(folder / "model.safetensors"), {"format": "pt"})
    return style


def case(number, args, folder):
    """What became of a case: a word, and what to print of it."""
    import torch
    from safetensors.torch import save_file
    from transformers import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    draw = random.Random(args.seed * 1_000_003 + number)
    family = draw.choice(FAMILIES)
    about, configs = [family], []
    for role in ["policy", "reward"]:
        config = shape(draw, family)
        about.append(f"{role} without {omit(draw, family, config)}")
        configs.append(config)
    refusal, styles, models = None, [], []
    load = {"dtype": torch.float64, "attn_implementation": "eager"}
    try:
        for role, config in zip(["policy", "reward"], configs):
            style = save(draw, folder / role, family, role == "reward", config, torch, save_file)
            about.append(f"{role} {style}")
            models.append(model_class(family, role == "reward").from_pretrained(folder / role, **load).eval())
        length = draw.choice([5, 12, 30])
        ids = torch.tensor([[draw.randrange(VOCABULARY) for _ in range(length)]])
        tensors = compare_hf.passes(*models, ids)
    except Exception as error:  # noqa: BLE001: whatever it says, it does not run
        refusal = f"{type(error).__name__}: {error}".split("\n")[0][:150]
    if refusal is None:
        save_file(tensors, str(folder / "forward_0.safetensors"))
        (folder / "traces.json").write_text(json.dumps({"model": "compared with transformers", "traces": []}))
        command = [args.ggro, "verify", "--json", "--device", "cpu", "--threads", "1", str(folder)]
    else:
        pairs = [f"--{role}={folder / role}" for role in ["policy", "reward"]]
        if not all((folder / role / "model.safetensors").exists() for role in ["policy", "reward"]):
            # The shape is not even a config to transformers, so there are no weights for it.
            return "transformers refuses the config", about, refusal
        command = [args.ggro, "info", "--json", *pairs]
    run = subprocess.run(command, capture_output=True, text=True)
    said = run.stderr.strip().split("\n")[-1]
    if run.returncode not in (0, 1):
        return ("both refuse" if refusal else "ggro refuses"), about, f"{said} | {refusal}"
    if refusal is not None:
        return "transformers refuses", about, refusal
    worst = {}
    for check in json.loads(run.stdout)["folders"][0]["checks"]:
        for one in check["deviations"]:
            value = float("nan") if one["worst"] is None else one["worst"]
            known = worst.get(one["quantity"], 0.0)
            worst[one["quantity"]] = value if not value <= known else known
    # A NaN is above everything.
    bound = lambda name: GRADIENT_BOUND if name.startswith("gradient") else BOUND
    broken = {name: value for name, value in worst.items() if not value <= bound(name)}
    if not worst:
        return "differs", about, f"nothing was compared: {said}"
    if broken:
        return "differs", about, f"{broken} {said}"
    return "agrees", about, max(worst.values())


def main():
    args = arguments()
    outcomes, largest, bad = collections.Counter(), 0.0, 0
    numbers = [args.only] if args.only is not None else range(args.count)
    for number in numbers:
        with tempfile.TemporaryDirectory() as temporary:
            folder = pathlib.Path(temporary) / "case"
            if args.keep:
                folder = pathlib.Path(args.keep) / f"case{number}"
                folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            outcome, about, detail = case(number, args, folder)
        outcomes[outcome] += 1
        if outcome == "agrees":
            largest = max(largest, detail)
        if outcome in ("differs", "ggro refuses", "transformers refuses") or args.verbose or args.only is not None:
            print(f"case {number}: {outcome}: {detail}\n    {'; '.join(about)}", flush=True)
        bad += outcome == "differs"
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:5} {outcome}")
    print(f"largest deviation of those that agree: {largest:.1e}; seed {args.seed}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
