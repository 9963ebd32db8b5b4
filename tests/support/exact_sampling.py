"""Exact distributions of tiny models, and how likely it is that samples came from one.

V tokens
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

MIN_EXPECTED = 5  # samples of a bin; rare tokens share one with others as rare


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
    if counts[probs == 0].any():
        return 0.0
    bins = _bins(probs * len(tokens))
    num_bins = int(bins.max()) + 1
    assert num_bins > 1, "too few samples to tell one distribution from another"
    observed, expected = (
        torch.zeros(num_bins).double().index_add(0, bins, values) for values in (counts, probs.double() * len(tokens))
    )
    chi_square = ((observed - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((num_bins - 1) / 2).double(), chi_square / 2))


def _bins(expected: Tensor) -> Tensor:
    """The bin of each token: from the likeliest on, as few as make one; what is left joins the last. [V] -> [V]"""
    bins, number, in_bin = torch.zeros(len(expected), dtype=torch.int64), 0, 0.0
    for token in expected.argsort(descending=True).tolist():
        bins[token] = number
        in_bin += float(expected[token])
        if in_bin >= MIN_EXPECTED:
            number, in_bin = number + 1, 0.0
    return bins.clamp(max=max(number - 1, 0))
