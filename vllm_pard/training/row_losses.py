"""Losses of many rows over a large vocabulary, without their logits in memory.

Logits exist for a chunk of rows at a time, and are computed again on the way back. Rows are sorted by the position that
they predict from, so a chunk's rows share few positions: the teacher's logits are computed once for each.

C rows of a chunk · T labelled rows · U positions that they predict from · H hidden size · V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vllm_pard.training.losses import cross_entropy, forward_kl, likelihood_of_acceptance, total_variation

__all__ = ["Chunk", "Head", "chunks_of", "predictions", "row_losses"]

DISTILLATION: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": forward_kl,
    "tv": total_variation,
    "lk": likelihood_of_acceptance,
}


@dataclass(frozen=True)
class Chunk:
    """Rows `start` to `stop` of the sorted rows, which predict from the positions `first` to `last` of the U."""

    start: int
    stop: int
    first: int
    last: int


@dataclass(frozen=True)
class Head:
    """Final hidden states and the matrix that makes logits of them."""

    hidden: Tensor  # [T, H] for the draft; [U, H] for the target
    weight: Tensor  # [V, H]; only the rows of the vocabulary that is trained
    bias: Tensor | None = None  # [V]

    def logits(self, rows: slice) -> Tensor:
        return F.linear(self.hidden[rows].to(self.weight.dtype), self.weight, self.bias)

    def log_probs(self, rows: slice) -> Tensor:
        """float32, whatever the logits are."""
        return F.log_softmax(self.logits(rows), dim=-1, dtype=torch.float32)

    def log_probs_beside(self, draft_log_probs: Tensor, positions: slice, which: Tensor) -> Tensor:
        """As `Teacher` has it; what the draft says is not needed."""
        return self.log_probs(positions)[which]


class Teacher(Protocol):
    """What is distilled."""

    def log_probs_beside(self, draft_log_probs: Tensor, positions: slice, which: Tensor) -> Tensor:
        """The teacher's log-probabilities float32 [C, V] beside the draft's [C, V]: of the U positions a slice, and of
        that `which`, int64 [C]. Each position is computed once.
        """


def chunks_of(teacher_rows: Sequence[int], chunk_size: int) -> list[Chunk]:
    """Cut rows into chunks of `chunk_size`.

    Args:
        teacher_rows: of each row, which of the U positions it predicts from: ascending, none left out, so that a chunk
            never has more positions than rows.
    """
    ends = [(start, min(start + chunk_size, len(teacher_rows))) for start in range(0, len(teacher_rows), chunk_size)]
    chunks = [Chunk(start, stop, teacher_rows[start], teacher_rows[stop - 1] + 1) for start, stop in ends]
    # Of a batch without a label there is nothing to learn, but its gradients are still waited for by other processes.
    return chunks or [Chunk(0, 0, 0, 0)]


def row_losses(
    draft: Head,
    labels: Tensor,
    chunks: Sequence[Chunk],
    *,
    teacher: Teacher | None = None,
    teacher_rows: Tensor,
    kinds: Sequence[str],
) -> dict[str, Tensor]:
    """Cross-entropy ("ce") and the distillation losses in `kinds`, each float32 [T].

    No tensor of T x V or U x V elements exists at any time, forward or backward.

    Args:
        draft: hidden states [T, H] of the labelled rows, sorted by teacher row.
        labels: int64 [T], indices into the trained vocabulary.
        chunks: of `chunks_of`; a single one is not computed twice.
        teacher: of the U positions, over the same vocabulary; needed by all kinds but "ce".
        teacher_rows: int64 [T], as in `chunks_of`.
        kinds: of "ce", "kl", "tv", "lk".
    """

    names = ["ce", *(kind for kind in kinds if kind != "ce")]

    def losses_of(chunk: Chunk, hidden: Tensor) -> tuple[Tensor, ...]:
        rows = slice(chunk.start, chunk.stop)
        log_probs = Head(hidden, draft.weight, draft.bias).log_probs(slice(None))  # [C, V]
        losses = [cross_entropy(log_probs, labels[rows])]
        if teacher is not None and len(names) > 1:
            with torch.no_grad():
                positions = slice(chunk.first, chunk.last)
                target_log_probs = teacher.log_probs_beside(log_probs, positions, teacher_rows[rows] - chunk.first)
            losses += [DISTILLATION[kind](log_probs, target_log_probs) for kind in names[1:]]
        return tuple(losses)

    def run(chunk: Chunk) -> tuple[Tensor, ...]:
        hidden = draft.hidden[chunk.start : chunk.stop]
        if len(chunks) == 1 or not torch.is_grad_enabled():
            return losses_of(chunk, hidden)
        return checkpoint(losses_of, chunk, hidden, use_reentrant=False)  # type: ignore[no-any-return]

    parts = [run(chunk) for chunk in chunks]
    return {name: torch.cat(values) for name, values in zip(names, zip(*parts, strict=True), strict=True)}


def predictions(draft: Head, chunks: Sequence[Chunk]) -> Tensor:
    """The most likely id of each row, an index into the trained vocabulary. int64 [T]"""
    return torch.cat([draft.logits(slice(chunk.start, chunk.stop)).argmax(dim=-1) for chunk in chunks])
