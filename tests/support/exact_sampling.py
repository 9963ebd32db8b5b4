"""Exact distributions of tiny models, and how likely it is that samples came from one.

V tokens
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

MIN_EXPECTED = 5  # samples of a bin of its own; rarer tokens share one


def filtered_probs(
    logits: Tensor, *, temperature: float = 1, top_k: int = 0, top_p: float = 1, min_p: float = 0
) -> Tensor:
    """What a sampler with these wishes draws from, in plain torch. [any, V] -> [any, V]"""
    probs = logits.double().div(temperature).softmax(-1)
    probs = probs.where(probs >= min_p * probs.amax(-1, keepdim=True), 0)
    sorted_probs, order = probs.sort(-1, descending=True)
    if top_k:
        sorted_probs[..., top_k:] = 0
    sorted_probs /= sorted_probs.sum(-1, keepdim=True)
    before = sorted_probs.cumsum(-1) - sorted_probs
    sorted_probs[before >= top_p] = 0
    kept = torch.zeros_like(probs).scatter_(-1, order, sorted_probs)
    return kept / kept.sum(-1, keepdim=True)


def second_token_probs(folder: Path, prompt: list[int], **wishes: Any) -> Tensor:
    """Distribution of the second new token: the first that can come from a draft. [V]"""
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        first = filtered_probs(model(torch.tensor([prompt])).logits[0, -1], **wishes)
        rows = torch.cat([torch.tensor([prompt]).expand(len(first), -1), torch.arange(len(first))[:, None]], dim=1)
        return first @ filtered_probs(model(rows).logits[:, -1], **wishes)


def mask_row_probs(folder: Path, prompt: list[int], mask_token_id: int, **wishes: Any) -> Tensor:
    """What a draft proposes from its mask token. [V]"""
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        return filtered_probs(model(torch.tensor([[*prompt, 0, mask_token_id]])).logits[0, -1], **wishes)


def p_value(tokens: list[int], probs: Tensor) -> float:
    """Of Pearson's chi-square test that `tokens` were drawn from `probs`; 0 where that can't be."""
    counts = torch.bincount(torch.tensor(tokens), minlength=len(probs)).double()
    expected = probs * len(tokens)
    if counts[probs == 0].any():
        return 0.0
    own = expected >= MIN_EXPECTED
    observed = torch.cat([counts[own], counts[~own].sum()[None]])
    expected = torch.cat([expected[own], expected[~own].sum()[None]])
    observed, expected = observed[expected > 0], expected[expected > 0]
    chi_square = ((observed - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2).double(), chi_square / 2))
