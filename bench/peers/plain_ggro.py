"""The whole method in plain PyTorch, written from its specification (tests/goldens/README.md, part 1).

What a researcher would write first: transformers' models, a key-value cache while a candidate is decoded, a full pass of the reward
model with autograd for each candidate. No prefix of the reward model is kept, no candidates are batched. Greedy choice of the nudge.
"""

from dataclasses import dataclass, field

import torch


@dataclass
class Options:
    """Parameters under the specification's names."""

    max_new_tokens: int
    entropy_threshold: float
    finish_id: int
    stop_ids: list
    max_candidates: int = 8
    top_k: int = 25
    min_generated: int = 4
    damping: float = 1e-10
    probability_floor: float = 1e-9


@dataclass
class Answer:
    """What came of it."""

    ids: list
    segments: int = 0
    nudges: int = 0
    visited: int = 0
    reward: float = float("nan")
    walks: list = field(default_factory=list)


def entropy(logits, floor):
    """In nats, with floored probabilities that are not renormalised (1.4)."""
    q = torch.softmax(logits.double(), -1).clamp_min(floor)
    return float(-(q * q.log()).sum())


class Plain:
    """A policy and a reward model of transformers, on one device."""

    def __init__(self, policy, reward):
        self.policy, self.reward = policy, reward
        # Told of every decision: its kind, and how far it was from another.
        self.decided = lambda kind, margin: None
        for weights in (*policy.parameters(), *reward.parameters()):
            weights.requires_grad_(False)

    def tensor(self, ids):
        return torch.tensor([ids], device=self.policy.device)

    def argmax(self, logits):
        first, second = torch.topk(logits, 2).values.tolist()
        self.decided("argmax", first - second)
        return int(logits.argmax())

    @torch.no_grad()
    def candidate(self, prefix, forced, options, end):
        """Decodes a candidate (1.4): its kept ids, why it stopped, and the logits behind the prefix."""
        x, generated, cache, feed = list(prefix), [], None, self.tensor(prefix)
        slot = None
        while True:
            out = self.policy(input_ids=feed, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, logits = out.past_key_values, out.logits[0, -1].float()
            if not generated:
                slot = logits
            uncertainty = entropy(logits, options.probability_floor)
            token = forced if forced is not None and not generated else self.argmax(logits)
            x.append(token)
            generated.append(token)
            full = len(x) == end
            if token == options.finish_id:
                return generated, "finish", slot
            if token in options.stop_ids:
                return (generated if full else generated[:-1]), "stop_id", slot
            if full:
                return generated, "length", slot
            if len(generated) >= options.min_generated:
                self.decided("entropy", abs(uncertainty - options.entropy_threshold))
                if uncertainty >= options.entropy_threshold:
                    return generated[:-1], "entropy", slot
            feed = self.tensor([token])

    def score(self, ids, slot=None):
        """Reward at the last position, and its gradient at a slot (1.5)."""
        embedded = self.reward.get_input_embeddings()(self.tensor(ids)).detach()
        embedded.requires_grad_(slot is not None)
        with torch.set_grad_enabled(slot is not None):
            hidden = self.reward.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
            reward = self.reward.score(hidden[0, -1])[0].float()
        if slot is None:
            return float(reward), None
        (gradient,) = torch.autograd.grad(reward, embedded)
        return float(reward.detach()), gradient[0, slot].float()

    def generate(self, prompt, options):
        """A response (1.3)."""
        prefix, end, answer = list(prompt), len(prompt) + options.max_new_tokens, Answer([])
        embeddings = self.reward.get_input_embeddings().weight
        while True:
            at, walk, forced, tried = len(prefix), [], None, set()
            for number in range(options.max_candidates):
                kept, stop, logits = self.candidate(prefix, forced, options, end)
                if any(kept == other for other, _, _ in walk):
                    break
                more = number + 1 < options.max_candidates and kept
                reward, gradient = self.score(prefix + kept, at if more else None)
                walk.append((kept, stop, reward))
                if not more:
                    break
                # The K largest logits, the lower id first on a tie (1.6).
                order = torch.argsort(logits, descending=True, stable=True)[: options.top_k]
                scores = (embeddings[order].float() @ gradient).double()
                scores[order == kept[0]] *= options.damping
                first, second = torch.topk(scores, 2).values.tolist()
                self.decided("score", first - second)
                edge = torch.topk(logits, options.top_k + 1).values.tolist()
                self.decided("top_k", edge[-2] - edge[-1])
                forced = int(order[int(scores.argmax())])
                tried.add(kept[0])
                if forced in tried:
                    # It would only be found to repeat a candidate.
                    break
            best = max(range(len(walk)), key=lambda i: (walk[i][2], -i))
            kept, stop, answer.reward = walk[best]
            self.decided("reward", min((abs(answer.reward - r) for i, (_, _, r) in enumerate(walk) if i != best), default=1.0))
            answer.segments += 1
            answer.nudges += best != 0
            answer.visited += len(walk)
            prefix += kept
            if stop == "finish" or len(prefix) - len(prompt) >= options.max_new_tokens or not kept:
                answer.ids = prefix[len(prompt) :]
                return answer

    @torch.no_grad()
    def greedy(self, prompt, tokens):
        """A greedy answer of so many tokens."""
        feed, cache, ids = self.tensor(prompt), None, []
        for _ in range(tokens):
            out = self.policy(input_ids=feed, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            ids.append(self.argmax(out.logits[0, -1]))
            feed = self.tensor(ids[-1:])
        return ids
