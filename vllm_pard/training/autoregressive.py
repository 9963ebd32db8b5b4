"""Ordinary next-token training on packed rows: the target and the draft's starting point.

B rows a batch · L tokens a row · V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM

from vllm_pard.training.packing import Document, PackedRows, pack

__all__ = ["Phase", "batch_rows", "next_token_labels", "next_token_loss"]

IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Steps of one shape."""

    num_steps: int
    batch_size: int
    length: int


def next_token_labels(rows: PackedRows) -> Tensor:
    """The id each token should predict. [B, L] -> int64 [B, L]; -100 unless the next token is part of an answer.

    Questions are drawn at random: learning to predict them would only add noise.
    """
    labels = torch.full_like(rows.tokens, IGNORED)
    labels[:, :-1] = rows.tokens[:, 1:].where(rows.is_answer[:, 1:], IGNORED)
    return labels


def batch_rows(num_rows: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Indices of the rows of one step [B]: every epoch is a new permutation, and depends on nothing but the step."""
    per_epoch = max(1, num_rows // batch_size)
    generator = torch.Generator().manual_seed(seed + step // per_epoch)
    order = torch.randperm(num_rows, generator=generator)
    start = step % per_epoch * batch_size
    return order[start : start + batch_size]


def next_token_loss(
    model: LlamaForCausalLM,
    documents: Sequence[Document],
    phases: Sequence[Phase],
    pad_id: int,
    seed: int,
) -> Callable[[int], Tensor]:
    """The loss of each step: cross-entropy of the next token, mean over the answer tokens.

    Attention is plain causal over the packed row: a document may look at the ones before it, which makes the model
    used to a past, as in a chat.
    """
    packed = {phase.length: pack(documents, phase.length, pad_id) for phase in phases}

    def loss_of(tokens: Tensor, labels: Tensor) -> Tensor:
        logits = model(input_ids=tokens, use_cache=False).logits  # [B, L, V]
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)

    compiled = torch.compile(loss_of, dynamic=False)

    def loss_of_step(step: int) -> Tensor:
        phase, first_step = _phase_at(phases, step)
        rows = packed[phase.length]
        batch = rows.take(batch_rows(len(rows), phase.batch_size, step - first_step, seed + first_step))
        loss: Tensor = compiled(batch.tokens, next_token_labels(batch))
        return loss

    return loss_of_step


def _phase_at(phases: Sequence[Phase], step: int) -> tuple[Phase, int]:
    """The phase of a step, and the step it began at."""
    first_step = 0
    for phase in phases:
        if step < first_step + phase.num_steps:
            return phase, first_step
        first_step += phase.num_steps
    raise ValueError(f"step must be under {first_step}, the sum of the phases; got {step}")
