#!/usr/bin/env python3
"""Writes a Llama of Hugging Face's layout as a GGUF file in bf16, which llama.cpp can load.

    python3 bench/peers/to_gguf.py MODEL_DIR FILE.gguf

Needs numpy and the package gguf. Weights become bf16, norms f32, as llama.cpp's own converter has them. The file has no tokenizer: ids
go in and logits come out.
"""

import json
import math
import os
import pathlib
import sys

import gguf
import numpy as np

OUTER = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
INNER = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def tensors_of(file):
    """Names and values of a safetensors file, bf16 as 16-bit words."""
    data = np.memmap(file, np.uint8, "r")
    length = int(data[:8].view("<u8")[0])
    for name, about in json.loads(bytes(data[8 : 8 + length])).items():
        if name == "__metadata__":
            continue
        kinds = {"BF16": "<u2", "F32": "<f4"}
        if about["dtype"] not in kinds:
            sys.exit(f"{file}: {name}: expected BF16 or F32, found {about['dtype']}")
        start, end = (8 + length + offset for offset in about["data_offsets"])
        yield name, data[start:end].view(kinds[about["dtype"]]).reshape(about["shape"])


def widened(values):
    return (values.astype(np.uint32) << 16).view(np.float32) if values.dtype == np.uint16 else values


def narrowed(values):
    """To bf16, the nearest even one."""
    if values.dtype == np.uint16:
        return values
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def permuted(values, heads):
    """Rows of queries and keys as llama.cpp rotates them: pairs of neighbours, where Hugging Face pairs halves."""
    rows, width = values.shape
    return values.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def frequency_factors(config, head_dim):
    """What Llama 3.1's scaling divides the rotation's frequencies by; none without it."""
    scaling = config.get("rope_scaling")
    if scaling is None:
        return None
    if scaling.get("rope_type") != "llama3":
        sys.exit(f"rope_scaling: {scaling.get('rope_type')} is not supported here")
    factor, low, high = (scaling[name] for name in ("factor", "low_freq_factor", "high_freq_factor"))
    original = scaling["original_max_position_embeddings"]
    found = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * config["rope_theta"] ** (i / head_dim)
        if wavelength < original / high:
            found.append(1.0)
        elif wavelength > original / low:
            found.append(float(factor))
        else:
            smooth = (original / wavelength - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    directory, target = map(pathlib.Path, sys.argv[1:])
    config = json.loads((directory / "config.json").read_text())
    if config["model_type"] != "llama" or config.get("attention_bias") or config.get("mlp_bias"):
        sys.exit(f"{directory}: expected a Llama without biases")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads

    partial = target.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("no_vocab")

    factors = frequency_factors(config, head_dim)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    for file in sorted(directory.glob("*.safetensors")):
        for name, values in tensors_of(file):
            if name in OUTER:
                if name == "lm_head.weight" and config.get("tie_word_embeddings"):
                    continue
                new = OUTER[name]
            else:
                _, _, layer, inner = name.split(".", 3)
                inner = inner.removesuffix(".weight")
                if inner not in INNER:
                    sys.exit(f"{file}: {name}: no such tensor in a Llama")
                new = f"blk.{layer}.{INNER[inner]}.weight"
                values = {"attn_q": lambda: permuted(values, heads), "attn_k": lambda: permuted(values, kv_heads)}.get(
                    INNER[inner], lambda: values)()
            if values.ndim == 1:
                writer.add_tensor(new, widened(values))
            else:
                words = np.ascontiguousarray(narrowed(values))
                writer.add_tensor(new, words.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, target)


if __name__ == "__main__":
    main()
