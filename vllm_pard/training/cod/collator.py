"""Packed documents into the rows of a batch, on the data loader's side, so that the model's side waits for nothing.

B packs · L tokens of a pack · N = B * L · R rows · T labelled rows · U positions that they predict from
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vllm_pard.training.cod.rows import IGNORED, PADDING, Rows, build_rows, chain_lengths, trained_run_lengths
from vllm_pard.training.options.config import CodConfig
from vllm_pard.training.row_losses import chunks_of

__all__ = ["Collator"]

LOGITS_AT_ONCE = 1 << 25  # logits of a chunk, in elements: 128 MiB in float32, a few of which are alive at once


@dataclass(frozen=True, kw_only=True)
class Collator:
    """Lays out a batch. What a pack trains depends on the seed and its draw, not on the batch that it comes in.

    Args:
        cod: depths and retention.
        seed: of the order of the anchors and of the documents without features.
        feature_dropout: share of the documents without features; None: nothing is said of features.
        vocabulary: int64, ascending, the ids that are trained; None: those below `vocab_size`. A row
            is left out if its label, or that of a shallower row of its chain, is not among them.
        vocab_size: V, how many ids are trained.
        multiple: R is a multiple of this.
        names_packs: a batch has the numbers of its packs, for a cache of what the target says of them.
    """

    cod: CodConfig
    seed: int
    vocab_size: int
    feature_dropout: float | None = None
    vocabulary: Tensor | None = None
    multiple: int = 1
    names_packs: bool = False

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Items of `PackedDataset` -> the arguments of `ParallelDraft.forward` but what the target says."""
        tokens = torch.cat([item["tokens"] for item in items])  # [N]
        documents = _numbered([item["documents"] for item in items])
        packs = torch.arange(len(items)).repeat_interleave(torch.tensor([len(item["tokens"]) for item in items]))
        is_trained = torch.cat([item["is_trained"] for item in items])
        is_known = tokens < self.vocab_size if self.vocabulary is None else torch.isin(tokens, self.vocabulary)
        is_trained &= is_known
        generators = [self._generator(item["draw"]) for item in items]
        lengths = chain_lengths(trained_run_lengths(documents, is_trained), packs, self.cod, generators)
        rows = self.rows(tokens, documents, lengths, generators)
        batch: dict[str, Any] = {"rows": asdict(rows), "tokens": tokens, **self._labels(rows)}
        if self.feature_dropout is not None:
            keeps = [
                _keeps_features(item["documents"], self.feature_dropout, generator)
                for item, generator in zip(items, generators, strict=True)
            ]
            batch["keeps_features"] = torch.cat(keeps)
        if self.names_packs:
            batch["packs"] = [item["pack"] for item in items]
        return batch

    def rows(self, tokens: Tensor, documents: Tensor, lengths: Tensor, generators: Sequence[torch.Generator]) -> Rows:
        """The layout of a batch, for experiments to replace."""
        return build_rows(tokens, documents, lengths, multiple=self.multiple)

    def _generator(self, draw: int) -> torch.Generator:
        """Unlike seeds that differ in few bits give unlike numbers only after mixing, which torch leaves to us."""
        mixed = (self.seed * 0x9E3779B97F4A7C15 + draw * 0xD1B54A32D192ED03) & (2**63 - 1)
        return torch.Generator().manual_seed(mixed)

    def _labels(self, rows: Rows) -> dict[str, Any]:
        """The labelled rows by the position that they predict from, so that a chunk needs few rows of the teacher."""
        is_labelled = rows.labels != IGNORED
        predicts_from = torch.where(is_labelled, rows.anchors + rows.depths, len(rows.labels))
        labelled = predicts_from.argsort(stable=True)[: int(is_labelled.sum())]  # [T]
        positions, teacher_rows = torch.unique(predicts_from[labelled], return_inverse=True)  # [U], [T]
        labels = rows.labels[labelled]
        if self.vocabulary is not None:
            labels = torch.searchsorted(self.vocabulary, labels)
        chunk_size = max(1, LOGITS_AT_ONCE // self.vocab_size)
        return {
            "labelled": labelled,
            "labels": labels,
            "positions": positions,
            "teacher_rows": teacher_rows,
            "chunks": chunks_of(teacher_rows.tolist(), chunk_size),
        }


def _keeps_features(documents: Tensor, dropout: float, generator: torch.Generator) -> Tensor:
    """Whole documents of a pack lose their features (dual mode, PARD-2, section 3.4). bool, like `documents`"""
    kept = torch.rand(int(documents.max()) + 2, generator=generator) >= dropout  # the first stands for padding
    return kept[documents + 1]


def _numbered(documents: Sequence[Tensor]) -> Tensor:
    """One number for each document of a batch; padding stays padding. [N]"""
    parts, first = [], 0
    for numbers in documents:
        parts.append(torch.where(numbers == PADDING, PADDING, numbers + first))
        first += int(numbers.max()) + 1
    return torch.cat(parts)
