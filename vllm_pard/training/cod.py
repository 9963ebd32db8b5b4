"""COnditional Drop-token: the training rows of a parallel draft (PARD, arXiv 2504.18583).

A row (n, i) stands for anchor n at depth i: it sees x_0..x_n and i mask tokens and predicts x_{n+i+1}. Depth 0 is
ordinary next-token prediction. Every deeper depth keeps fewer anchors, and an anchor kept at depth i is kept at all
depths before it, so that its chain of mask tokens is whole.

B sequences · L tokens a sequence · P depths · R rows a sequence · n_i rows at depth i
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_pard.training.autoregressive import IGNORED
from vllm_pard.training.packing import PackedRows

__all__ = ["CodConfig", "CodRows", "build_rows", "order_anchors", "trained_anchors"]


@dataclass(frozen=True, kw_only=True)
class CodConfig:
    """How many depths to train and how many anchors each keeps.

    Raises:
        ValueError: a value is out of its range.
    """

    num_depths: int = 8
    retention: float = 0.7
    min_retention: float = 0.2

    def __post_init__(self) -> None:
        if self.num_depths < 1:
            raise ValueError(f"num_depths must be 1 or more; got {self.num_depths}")
        if not 0 < self.min_retention <= self.retention <= 1:
            raise ValueError(
                "CodConfig needs 0 < min_retention <= retention <= 1; "
                f"got min_retention={self.min_retention}, retention={self.retention}"
            )

    def rows_per_depth(self, length: int) -> tuple[int, ...]:
        """n_i = int(L * max(r^i, r_min)) for each depth."""
        return tuple(int(length * max(self.retention**i, self.min_retention)) for i in range(self.num_depths))


@dataclass(frozen=True)
class CodRows:
    """The kept rows of a batch, depth by depth. Every field is [B, R]."""

    tokens: Tensor  # int64; x_n at depth 0, the mask token below
    labels: Tensor  # int64; x_{n+i+1}, or -100
    positions: Tensor  # int64; n + i, counted from the start of the document
    anchors: Tensor  # int64; n, an index into the sequence
    depths: Tensor  # int64; i
    documents: Tensor  # int64; the document of x_n, -1 for padding


def trained_anchors(batch: PackedRows, answers_only: bool) -> Tensor:
    """Anchors whose next token is in the same document and, if `answers_only`, in its answer. bool [B, L]"""
    anchors = torch.zeros_like(batch.is_answer)
    same_document = batch.documents[:, 1:] == batch.documents[:, :-1]
    wanted = batch.is_answer if answers_only else batch.documents >= 0
    anchors[:, :-1] = same_document & wanted[:, 1:]
    return anchors


def order_anchors(trained: Tensor, generator: torch.Generator) -> Tensor:
    """One random order of the anchors per sequence, trained anchors first. bool [B, L] -> int64 [B, L]

    Depth i keeps the first n_i of the order: prefixes of one permutation are nested uniform subsets.
    """
    keys = torch.rand(trained.shape, generator=generator)  # [B, L] in [0, 1)
    return (keys + (~trained).float()).argsort(dim=1)


def build_rows(
    batch: PackedRows, config: CodConfig, mask_id: int, answers_only: bool, generator: torch.Generator
) -> CodRows:
    """Lay out the kept rows of a batch.

    R = sum of config.rows_per_depth(L) whatever the text, so a batch shape compiles once.

    Args:
        batch: packed documents [B, L].
        config: depths and retention.
        mask_id: the mask token (`pard_token`).
        answers_only: train on answer tokens alone; the question is still seen.
        generator: draws the order of the anchors.
    """
    length = batch.tokens.shape[1]
    trained = trained_anchors(batch, answers_only)
    order = order_anchors(trained, generator)
    natural = torch.arange(length).expand_as(order)
    rows_per_depth = config.rows_per_depth(length)
    anchors = torch.cat([natural if i == 0 else order[:, :n] for i, n in enumerate(rows_per_depth)], dim=1)  # [B, R]
    depths = torch.repeat_interleave(torch.arange(config.num_depths), torch.tensor(rows_per_depth)).expand_as(anchors)
    documents = batch.documents.gather(1, anchors)
    targets = anchors + depths + 1  # [B, R]; may lie past the sequence
    within = targets.clamp(max=length - 1)
    valid = (targets < length) & trained.gather(1, anchors) & (batch.documents.gather(1, within) == documents)
    return CodRows(
        tokens=batch.tokens.gather(1, anchors).where(depths == 0, mask_id),
        labels=batch.tokens.gather(1, within).where(valid, IGNORED),
        positions=_positions(batch.documents).gather(1, anchors) + depths,
        anchors=anchors,
        depths=depths,
        documents=documents,
    )


def _positions(documents: Tensor) -> Tensor:
    """Place of each token within its document. [B, L] -> int64 [B, L]"""
    index = torch.arange(documents.shape[1]).expand_as(documents)
    starts = torch.zeros_like(documents)
    begins = documents[:, 1:] != documents[:, :-1]
    starts[:, 1:] = index[:, 1:].where(begins, 0)
    return index - starts.cummax(dim=1).values
