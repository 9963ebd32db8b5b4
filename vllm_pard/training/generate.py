"""Greedy answers of a model, many prompts at a time.

B prompts a batch · L tokens of the longest prompt
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

__all__ = ["greedy_answers"]


@torch.inference_mode()
def greedy_answers(
    model: LlamaForCausalLM,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    report: Callable[[str], None],
) -> list[list[int]]:
    """Complete each prompt up to and including END, or up to `max_new_tokens`."""
    settings = deepcopy(model.generation_config)
    settings.max_new_tokens = max_new_tokens
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(prompts), batch_size):
        chosen = by_length[start : start + batch_size]
        tokens, attention_mask = _pad_left([prompts[i] for i in chosen], model.config.pad_token_id)
        generated = model.generate(
            input_ids=tokens,
            attention_mask=attention_mask,
            generation_config=settings,
        )
        for i, row in zip(chosen, generated[:, tokens.shape[1] :].tolist(), strict=True):
            answers[i] = _up_to_end(row, model.config.eos_token_id)
        report(f"{min(start + batch_size, len(prompts))}/{len(prompts)} answers")
    return answers


def _pad_left(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both int64 [B, L]."""
    length = max(len(prompt) for prompt in prompts)
    tokens = torch.tensor([[pad_id] * (length - len(prompt)) + list(prompt) for prompt in prompts])
    attention_mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return tokens, attention_mask


def _up_to_end(tokens: list[int], end_id: int) -> list[int]:
    return tokens[: tokens.index(end_id) + 1] if end_id in tokens else tokens
