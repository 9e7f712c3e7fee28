#!/usr/bin/env python3
"""PyTorch and transformers, measured for peers.py.

    python3 torch_peer.py --policy DIR --reward DIR --dtype float32|bfloat16|float16 --device cpu|cuda --threads N

Reads a request per line and answers each with a line, both JSON: see peers.py. A model is loaded when it is first needed, and given back
when the other one is, except for whole answers, which need both. What is timed is a pass with everything that a caller waits for, the
likeliest ids or the rewards on the host included.
"""

import argparse
import gc
import json
import sys
import time

import torch
import transformers
from transformers import DynamicCache, StaticCache

transformers.logging.set_verbosity_error()


class Peer:
    def __init__(self, args):
        self.args = args
        self.dtype = getattr(torch, args.dtype)
        self.models = {}
        self.run = None

    def model(self, role, alone=True):
        other = {"policy": "reward", "reward": "policy"}[role]
        if alone and self.models.pop(other, None) is not None:
            gc.collect()
        if role not in self.models:
            kind = transformers.AutoModelForCausalLM if role == "policy" else transformers.AutoModelForSequenceClassification
            model = kind.from_pretrained(getattr(self.args, role), dtype=self.dtype).to(self.args.device).eval()
            for weights in model.parameters():
                weights.requires_grad_(False)
            self.models[role] = model
        return self.models[role]

    def tensor(self, ids):
        return torch.tensor(ids, device=self.args.device)

    def timed(self, work):
        """Seconds of the wall and of the processor, and what came of it."""
        processor, started = time.process_time(), time.perf_counter()
        value = work()
        if self.args.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started, time.process_time() - processor, value

    def setup(self, case):
        """Prepares a case and runs it once."""
        self.run = None
        gc.collect()
        self.run = getattr(self, case["phase"].replace(" ", "_"))(case)
        return self.run()

    def prefill(self, case):
        policy, ids = self.model("policy"), self.tensor(case["prompts"])

        @torch.no_grad()
        def run():
            return self.timed(lambda: policy(input_ids=ids, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1).tolist())

        return run

    def decode(self, case):
        policy, ids, step = self.model("policy"), self.tensor(case["prompts"]), self.tensor(case["steps"])[:, None]
        if case.get("graph"):
            return self.graphed(policy, ids, step)
        cache = DynamicCache()
        with torch.no_grad():
            policy(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

        # Every step is one position further, as ggro's are.
        @torch.no_grad()
        def run():
            return self.timed(lambda: policy(input_ids=step, past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1).tolist())

        return run

    def graphed(self, policy, ids, step):
        """A decode step with a static cache, recorded once as a CUDA graph and replayed."""
        context = ids.shape[1]
        cache = StaticCache(config=policy.config, max_cache_len=context + 8)
        with torch.no_grad():
            policy(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            at = torch.tensor([context], device=ids.device)

            def once():
                return policy(input_ids=step, past_key_values=cache, cache_position=at, use_cache=True).logits[:, -1].argmax(-1)

            for _ in range(3):
                once()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                chosen = once()
        return lambda: self.timed(lambda: (graph.replay(), chosen.tolist())[1])

    def reward(self, case):
        return self.scored(case, grad=False)

    def gradient(self, case):
        return self.scored(case, grad=True)

    def scored(self, case, grad):
        """Segments behind a prefix whose keys and values are kept: scored, or differentiated by autograd."""
        reward = self.model("reward")
        prefix, tail, listed = (self.tensor(case[name]) for name in ("prefix", "segments", "listed"))
        embedding = reward.get_input_embeddings()
        kept = DynamicCache()
        with torch.no_grad():
            reward.model(input_ids=prefix[None].repeat(len(tail), 1), past_key_values=kept, use_cache=True)
        pairs = [(layer.keys, layer.values) for layer in kept.layers]

        def once(cache):
            embedded = embedding(tail).detach().requires_grad_(grad)
            with torch.set_grad_enabled(grad):
                hidden = reward.model(inputs_embeds=embedded, past_key_values=cache, use_cache=True).last_hidden_state
                rewards = reward.score(hidden[:, -1])[:, 0].float()
            if grad:
                (gradient,) = torch.autograd.grad(rewards.sum(), embedded)
                (embedding.weight[listed].float() @ gradient[:, 0].float().T).tolist()
            return rewards.tolist()

        def run():
            # A cache of its own for each run, made before the clock starts: nothing of an earlier run's graph stays.
            cache = DynamicCache()
            with torch.no_grad():
                for layer, (keys, values) in enumerate(pairs):
                    cache.update(keys, values, layer)
            return self.timed(lambda: once(cache))

        return run

    def plain(self):
        from plain_ggro import Plain

        return Plain(self.model("policy", alone=False), self.model("reward", alone=False))

    def prompt(self, message):
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.args.policy)
        text = tokenizer.apply_chat_template([{"role": "user", "content": message}], add_generation_prompt=True, tokenize=False)
        return tokenizer.encode(text, add_special_tokens=False)

    def greedy_answer(self, case):
        plain, prompt = self.plain(), self.prompt(case["message"])
        return lambda: self.timed(lambda: plain.greedy(prompt, case["tokens"]))

    def ggro_answer(self, case):
        from plain_ggro import Options

        plain, prompt = self.plain(), self.prompt(case["message"])
        # No id ends an answer, as in the benchmark: both write all tokens.
        options = Options(case["tokens"], case["threshold"], -1, [-1], max_candidates=case["candidates"])
        return lambda: self.timed(lambda: plain.generate(prompt, options).ids)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("policy", "reward", "dtype", "device"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    peer = Peer(args)
    # What libraries print must not come between the answers.
    out, sys.stdout = sys.stdout, sys.stderr

    def say(value):
        print(json.dumps(value), file=out, flush=True)

    capability = torch.backends.cpu.get_cpu_capability()
    say({"about": f"torch {torch.__version__}, transformers {transformers.__version__}", "library": capability, "features": capability})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "setup" in request:
                wall, _, ids = peer.setup(request["setup"])
                say({"wall": wall, "ids": ids})
            else:
                runs = [peer.run() for _ in range(request["turn"])]
                say({name: [run[i] for run in runs] for i, name in enumerate(["wall", "processor", "ids"])})
        except Exception as error:  # One case that a peer cannot do is a gap in a table, not its end.
            say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
