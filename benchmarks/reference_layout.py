"""A training step as PARD's published code lays it out, written anew from its description, to measure ours against.

P segments of L rows each: segment 0 holds the tokens, each other the mask token, and row (i, p) sits at position p. The
mask says which of the T = P * L rows see each other, in full, as floats; what COD drops is then gathered away on both
axes. Teacher and student have logits for every row that is left, in float32.

L tokens · P segments · T = P * L · R rows that are kept · V vocabulary · H hidden size of the target
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from vllm_pard.training.options.config import CodConfig

IGNORED = -100


@dataclass(frozen=True)
class ReferenceBatch:
    """What the collator hands to the model."""

    tokens: Tensor  # int64 [R]
    positions: Tensor  # int64 [R]
    segments: Tensor  # int64 [R]
    labels: Tensor  # int64 [R], or -100
    mask: Tensor  # float32 [1, 1, R, R]


def full_mask(length: int, num_segments: int) -> Tensor:
    """0 where a row sees another: the tokens up to its anchor, and its own chain. float32 [T, T]"""
    mask = torch.full((num_segments * length,) * 2, torch.finfo(torch.float32).min)
    mask.fill_diagonal_(0)
    seen = torch.ones(length, length, dtype=torch.bool)
    for segment in range(num_segments):
        rows = slice(segment * length, (segment + 1) * length)
        mask[rows, :length].masked_fill_(seen.tril(-segment), 0)
        places = torch.arange(segment, length)
        for earlier in range(1, segment):
            mask[segment * length + places, earlier * length + places - segment + earlier] = 0
    return mask


def kept_rows(length: int, cod: CodConfig, generator: torch.Generator) -> Tensor:
    """Segment by segment, some of the rows whose predecessor is kept. int64 [R]"""
    previous, kept = torch.arange(length), [torch.arange(length)]
    for segment, num_kept in enumerate(cod.anchors_per_depth(length)[1:], start=1):
        chosen = previous[torch.randperm(len(previous), generator=generator)[:num_kept]]
        kept.append(segment * length + chosen)
        previous = (chosen + 1) % length
    return torch.cat(kept)


def collate(tokens: Tensor, cod: CodConfig, mask_token_id: int, generator: torch.Generator) -> ReferenceBatch:
    """int64 [L]"""
    length, num_segments = len(tokens), cod.num_depths
    kept = kept_rows(length, cod, generator)
    segments, positions = kept // length, kept % length
    following = F.pad(tokens[1:], (0, 1), value=IGNORED)
    return ReferenceBatch(
        tokens=torch.where(segments == 0, tokens[positions], mask_token_id),
        positions=positions,
        segments=segments,
        # A row has a label from the first token that its segment's masks stand before.
        labels=torch.where(positions + 1 >= segments, following[positions], IGNORED),
        mask=full_mask(length, num_segments)[kept][:, kept][None, None],
    )


def cat_weights(log_probs: Tensor, batch: ReferenceBatch) -> Tensor:
    """The target's probability of the tokens that a row takes for granted. [L] -> [R]"""
    total = log_probs.double().cumsum(dim=0)
    anchors = batch.positions - batch.segments
    return (total[batch.positions] - torch.where(anchors >= 0, total[anchors.clamp(min=0)], total[0])).exp().float()


def row_losses(draft: PreTrainedModel, batch: ReferenceBatch, hidden: Tensor, lm_head: nn.Module) -> Tensor:
    """0.1 cross-entropy + KL of each row; 0 where there is no label. hidden: [L, H] -> [R]"""
    inputs: dict[str, Any] = {"input_ids": batch.tokens[None], "position_ids": batch.positions[None]}
    logits = draft(**inputs, attention_mask=batch.mask, use_cache=False).logits[0].float()  # [R, V]
    with torch.no_grad():
        teacher = lm_head(hidden[batch.positions]).float().log_softmax(dim=-1)  # [R, V]
    ce = F.cross_entropy(logits, batch.labels, reduction="none", ignore_index=IGNORED)
    kl = F.kl_div(logits.log_softmax(dim=-1), teacher, log_target=True, reduction="none").sum(dim=-1)
    return torch.where(batch.labels != IGNORED, 0.1 * ce + kl, 0.0)


def step_loss(
    draft: PreTrainedModel, batch: ReferenceBatch, hidden: Tensor, log_probs: Tensor, lm_head: nn.Module
) -> Tensor:
    """The CAT-weighted mean."""
    weights = cat_weights(log_probs, batch) * (batch.labels != IGNORED)
    return (weights * row_losses(draft, batch, hidden, lm_head)).sum() / weights.sum().clamp(min=1e-6)
