#!/usr/bin/env python3
"""Writes tests/smollm2/expected.json: what transformers says in float64 about the pair that scripts/smollm2.py makes.

    scripts/smollm2_reference.py [FOLDER]        (FOLDER: target/smollm2)

Needs torch, transformers and safetensors. The script stops if a decision (of an argmax, of a threshold, between rewards or nudge
tokens) is so close that arithmetic in f32 may take it otherwise: then choose another text.
"""

import json
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench" / "peers"))
from plain_ggro import Options, Plain  # noqa: E402

THRESHOLD = 1.5
GREEDY_TOKENS = 40
# Smallest margins: of logits, entropies and rewards, and of scores of nudge tokens.
MARGIN, SCORE_MARGIN = 2e-3, 5e-5

CHAT = ["Why is the sky blue?", "Who was Albert Einstein?"]
TEXTS = [
    "Hello, world! 1234 + 5678 = 6912\n",
    "Tab\tand  two spaces, \u00e9t\u00e9, \u4e2d\u6587, \U0001f600 and <|im_end|> inside.",
    "def f(x):\n    return x ** 2  # don't\n",
]
# A text of any length: numbered sentences, so that no part repeats another.
SENTENCES = [
    "On day {n} the keeper of the lighthouse counted {m} ships.",
    "Item {n} costs {m} cents, and nobody asked why.",
    "The river rose by {m} inches in week {n}.",
    "Chapter {n} has {m} pages about a small fox.",
]
DEPTHS = [16, 200, 800, 2000]


def long_text():
    return " ".join(SENTENCES[n % 4].format(n=n, m=n * 7 % 101) for n in range(1, 200))


def digest(ids):
    """FNV-1a in 64 bits over the ids as little-endian bytes."""
    value = 0xCBF29CE484222325
    for byte in b"".join(x.to_bytes(4, "little") for x in ids):
        value = (value ^ byte) * 0x100000001B3 & (1 << 64) - 1
    return f"{value:016x}"


class Margins:
    """The smallest of each kind."""

    def __init__(self):
        self.least = {}

    def __call__(self, kind, margin):
        self.least[kind] = min(margin, self.least.get(kind, float("inf")))

    def check(self, what):
        for kind, margin in self.least.items():
            if margin < (SCORE_MARGIN if kind == "score" else MARGIN):
                sys.exit(f"{what}: a decision of kind {kind} has a margin of {margin:.1e} only")
        return {kind: round(margin, 6) for kind, margin in self.least.items()}


def depth(policy, reward, ids, slot):
    """Logits and entropy at the last position, the reward there, and its gradient at a slot."""
    tensor = torch.tensor([ids])
    with torch.no_grad():
        logits = policy(input_ids=tensor, logits_to_keep=1).logits[0, -1]
    q = torch.softmax(logits, -1)
    floored = q.clamp_min(1e-9)
    embedded = reward.get_input_embeddings()(tensor).detach().requires_grad_(True)
    score = reward.score(reward.model(inputs_embeds=embedded, use_cache=False).last_hidden_state[0, -1])[0]
    (gradient,) = torch.autograd.grad(score, embedded)
    gradient = gradient[0, slot]
    top = logits.topk(8)
    return {
        "tokens": len(ids),
        "slot": slot,
        "top_ids": top.indices.tolist(),
        "top_logits": [round(x, 6) for x in top.values.tolist()],
        "entropy": round(float(-(floored * floored.log()).sum()), 6),
        "reward": round(float(score.detach()), 6),
        "gradient_norm": round(float(gradient.norm()), 8),
        "gradient_head": [round(x, 8) for x in gradient[:8].tolist()],
    }


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target" / "smollm2")
    load = {"dtype": torch.float64, "attn_implementation": "eager"}
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    policy = AutoModelForCausalLM.from_pretrained(folder / "policy", **load).eval()
    reward = AutoModelForSequenceClassification.from_pretrained(folder / "reward", **load).eval()
    chat = lambda text: tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False)
    encode = lambda text: tokenizer(text, add_special_tokens=False).input_ids
    texts = TEXTS + [long_text()]
    ids = encode(long_text())
    if len(ids) < DEPTHS[-1]:
        sys.exit(f"the long text has {len(ids)} tokens only")
    depths = []
    for count in DEPTHS:
        depths.append(depth(policy, reward, ids[:count], count - 8))
        print(depths[-1], file=sys.stderr)

    plain, answers = Plain(policy, reward), []
    finish = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for request in CHAT:
        prompt, margins = encode(chat(request)), Margins()
        plain.decided = margins
        greedy = plain.greedy(prompt, GREEDY_TOKENS)
        options = Options(max_new_tokens=GREEDY_TOKENS, entropy_threshold=THRESHOLD, finish_id=finish, stop_ids=[finish])
        answer = plain.generate(prompt, options)
        least = margins.check(request)
        text = tokenizer.decode(answer.ids)
        print(f"{request}: {answer.segments} segments, {answer.nudges} nudges, {least}: {text!r}", file=sys.stderr)
        answers.append({
            "request": request, "prompt": chat(request), "prompt_ids": prompt, "greedy": greedy, "ids": answer.ids,
            "segments": answer.segments, "nudges": answer.nudges, "visited": answer.visited, "reward": round(answer.reward, 6),
            "margins": least,
        })
    expected = {
        "made_by": "scripts/smollm2_reference.py, transformers in float64",
        "tokenized": [{"text": text, "tokens": len(encode(text)), "ids": encode(text)[:48], "digest": digest(encode(text))} for text in texts],
        "depths": depths,
        "threshold": THRESHOLD,
        "answers": answers,
    }
    path = ROOT / "tests" / "smollm2" / "expected.json"
    path.write_text(json.dumps(expected, indent=1, ensure_ascii=True) + "\n")
    print(path)


if __name__ == "__main__":
    main()
