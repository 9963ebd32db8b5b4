"""Two exact ways to verify several drafts of one position, compared by how often one of them is accepted.

python benchmarks/branch_rules.py --json benchmarks/results/branch_rules_cpu.json \
    [--real-pair runs/real_pair --test gsm8k_test.jsonl]    # what benchmarks/real_pair.py has trained

descent              the draft's likeliest tokens; the target draws, and the child that it has drawn is followed
without replacement  as many draws from the draft's distribution, each another token, verified one after the other by
                     rejection from what is left of both distributions (Recursive Rejection Sampling, arXiv 2402.14160)

Both leave the target's distribution as it is. The target samples its answers; at each of their positions, and each
depth of a draft forward before it, both distributions are known, and with them how likely a draft is accepted. Nothing
is decoded with drafts.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from drafted_answers import answer, draft_logits
from torch import Tensor
from trees import Loaded, Question, run

DEPTHS, BRANCHES, TEMPERATURES = (1, 2, 4, 8), (1, 2, 4, 8), (1.0, 0.7)


def descent(p: Tensor, q: Tensor, branches: int) -> Tensor:
    """Probability that the target draws one of the draft's likeliest tokens. [R, V], [R, V] -> [R]"""
    return p.gather(1, q.topk(branches, -1).indices).sum(-1)


def without_replacement(p: Tensor, q: Tensor, branches: int, generator: torch.Generator) -> Tensor:
    """Probability that one of so many draws of the draft is accepted. [R, V], [R, V] -> [R]

    Given the tokens that were rejected before, that of each round is exact; these tokens themselves are drawn, so the
    result is an unbiased estimate.
    """
    rejected = torch.ones_like(p[:, 0])
    for _ in range(branches):
        rejected = rejected * (1 - torch.minimum(p, q).sum(-1).clamp(max=1))
        of_rejected = (q - p).clamp(min=0)
        of_rejected = torch.where(of_rejected.sum(-1, keepdim=True) > 0, of_rejected, q)
        token = of_rejected.multinomial(1, generator=generator)
        p, q = _normalised((p - q).clamp(min=0)), _normalised(q.scatter(1, token, 0))
    return 1 - rejected


def _normalised(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


@torch.inference_mode()
def distributions(loaded: Loaded, prompt: list[int], temperature: float, length: int) -> tuple[Tensor, Tensor]:
    """An answer is sampled; the target's distributions of its tokens, and at each the draft's of the tokens from it on.

    Returns:
        p: [N, V] float64.
        q: [N, DEPTHS, V] float64; depth d of row n is of the token n + d.
    """
    tokens = answer(loaded.target, prompt, temperature, length)
    logits = loaded.target(tokens[None, :-1]).logits[0, len(prompt) - 1 :]
    drafted = draft_logits(loaded, tokens, len(prompt), DEPTHS[-1])
    return _probs(logits, temperature), _probs(drafted, temperature)


def _probs(logits: Tensor, temperature: float) -> Tensor:
    return logits.double().div(temperature).softmax(-1)


def measure(question: Question, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each temperature, depth and number of branches."""
    loaded = Loaded.of(question, given.num_prompts, wanted="independent")
    for temperature in TEMPERATURES:
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        found = [distributions(loaded, prompt, temperature, given.max_tokens) for prompt in loaded.prompts]
        for depth in DEPTHS:
            p = torch.cat([p[depth - 1 :] for p, _ in found])
            q = torch.cat([q[: len(q) - depth + 1, depth - 1] for _, q in found])
            for branches in BRANCHES:
                yield question.names | {
                    "temperature": temperature,
                    "depth": depth,
                    "branches": branches,
                    "descent": round(float(descent(p, q, branches).mean()), 4),
                    "without_replacement": round(float(without_replacement(p, q, branches, generator).mean()), 4),
                    "num_positions": len(p),
                }


def main() -> None:
    run(measure, __doc__, num_prompts=24, max_tokens=96)


if __name__ == "__main__":
    main()
