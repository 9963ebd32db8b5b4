"""COnditional Drop-token (COD): the training rows of a parallel draft (PARD, arXiv 2504.18583).

A row (n, i) stands for anchor n at depth i: it sees x_0..x_n and i mask tokens and predicts x_{n+i+1}. Depth 0 is
ordinary next-token prediction. Deeper rows only exist in whole chains: with (n, i) there is every (n, j), 0 < j < i.

A batch is one long row of packed documents, so that no row is padded to its neighbour's length: first all N tokens at
depth 0, then the mask tokens, chain by chain in text order. A block of rows then sees few blocks of keys.

N tokens · P depths · R rows, N of them tokens · A anchors that are trained · n_i anchors kept at depth i
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from vllm_pard.training.options.config import CodConfig

__all__ = ["IGNORED", "Rows", "build_rows", "chain_lengths", "positions_in_documents", "trained_run_lengths"]

IGNORED = -100  # the label of a row that predicts nothing, as in torch.nn.functional.cross_entropy
PADDING = -1  # the document of a row that stands for nothing


@dataclass(frozen=True)
class Rows:
    """The rows of a batch. Every field is int64 [R]; `document` is -1 where a row is padding."""

    anchors: Tensor  # n, an index into the batch's N tokens
    depths: Tensor  # i
    documents: Tensor  # the document of x_n
    positions: Tensor  # n + i, counted from the start of the document
    labels: Tensor  # x_{n+i+1}, or -100

    def to(self, device: torch.device | str) -> Rows:
        return Rows(*(getattr(self, field.name).to(device) for field in fields(self)))

    def at(self, which: Tensor | slice) -> Rows:
        """Some of the rows, in their order; the first N are the tokens, for a model that reads no mask tokens."""
        return Rows(*(getattr(self, field.name)[which] for field in fields(self)))


def positions_in_documents(documents: Tensor) -> Tensor:
    """Place of each token within its document. [N] -> int64 [N]"""
    index = torch.arange(len(documents), device=documents.device)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[1:] = documents[1:] != documents[:-1]
    return index - torch.where(begins, index, 0).cummax(dim=0).values


def trained_run_lengths(documents: Tensor, is_trained: Tensor) -> Tensor:
    """How many tokens after each one are trained without a gap, in its document: the longest chain that predicts only
    trained tokens. [N], bool [N] -> int64 [N]
    """
    index = torch.arange(len(documents), device=documents.device)
    continues = torch.zeros_like(is_trained)  # the next token is trained, and in the same document
    continues[:-1] = is_trained[1:] & (documents[1:] == documents[:-1]) & (documents[1:] != PADDING)
    ends = torch.where(continues, len(documents), index)
    # The nearest index, from each token on, whose next token is not trained.
    next_end = ends.flip(0).cummin(dim=0).values.flip(0)
    return next_end - index


def chain_lengths(run_lengths: Tensor, packs: Tensor, config: CodConfig, generators: list[torch.Generator]) -> Tensor:
    """How many rows each token is the anchor of: depths 0 to length - 1; 0 where it trains nothing.

    In each pack the trained anchors are put into one random order, and depth i keeps the first n_i of it: prefixes of
    one permutation are nested uniform subsets, so whatever is kept at a depth is kept at all before it.

    Args:
        run_lengths: int64 [N], of `trained_run_lengths`.
        packs: int64 [N], ascending: which pack each token is in.
        config: depths and retention.
        generators: one for each pack; a pack's rows do not depend on its neighbours.
    """
    lengths = torch.zeros_like(run_lengths)
    for pack, generator in enumerate(generators):
        anchors = torch.nonzero((packs == pack) & (run_lengths > 0))[:, 0]  # [A]
        order = torch.randperm(len(anchors), generator=generator)
        for num_kept in config.anchors_per_depth(len(anchors)):
            lengths[anchors[order[:num_kept]]] += 1
    return torch.minimum(lengths, run_lengths)


def build_rows(tokens: Tensor, documents: Tensor, lengths: Tensor, *, multiple: int = 1) -> Rows:
    """Lay out the rows of a batch.

    Args:
        tokens: int64 [N].
        documents: int64 [N]; a number for each document, -1 for padding.
        lengths: int64 [N], of `chain_lengths`.
        multiple: pad R to a multiple of this, for kernels that want whole blocks.
    """
    num_tokens = len(tokens)
    index = torch.arange(num_tokens)
    num_masks = (lengths - 1).clamp(min=0)  # [N]
    mask_anchors = index.repeat_interleave(num_masks)  # [R - N]
    starts = (num_masks.cumsum(0) - num_masks).repeat_interleave(num_masks)
    mask_depths = torch.arange(len(mask_anchors)) - starts + 1
    anchors, depths = torch.cat([index, mask_anchors]), torch.cat([torch.zeros_like(index), mask_depths])
    is_labelled = depths < lengths[anchors]
    rows = Rows(
        anchors=anchors,
        depths=depths,
        documents=documents[anchors],
        positions=positions_in_documents(documents)[anchors] + depths,
        labels=torch.where(is_labelled, tokens[(anchors + depths + 1).clamp(max=num_tokens - 1)], IGNORED),
    )
    return _padded(rows, -len(anchors) % multiple)


def _padded(rows: Rows, num_rows: int) -> Rows:
    """Rows that stand for nothing, behind the others: each sees itself, and nobody sees them."""

    def pad(values: Tensor, value: int) -> Tensor:
        return torch.cat([values, values.new_full((num_rows,), value)])

    return Rows(
        anchors=pad(rows.anchors, 0),
        depths=torch.cat([rows.depths, 1 + torch.arange(num_rows)]),
        documents=pad(rows.documents, PADDING),
        positions=pad(rows.positions, 0),
        labels=pad(rows.labels, IGNORED),
    )
