"""Which rows of a COD layout see each other (PARD, arXiv 2504.18583).

A row (depth s, anchor n) sees a row (depth d, anchor m) of its document iff

    (d = 0 and m <= n)  or  (m = n and d <= s)

that is, the real tokens up to its anchor and its own chain of mask tokens: what a draft sees when it runs.

B sequences · R rows a sequence
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from vllm_pard.training.cod import CodRows

__all__ = ["attention_mask", "block_mask", "dense_mask", "mask_rule"]

MaskRule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def mask_rule(rows: CodRows) -> MaskRule:
    """The rule as FlexAttention's `mask_mod`: (sequence, head, query row, key row) -> bool."""
    anchors, depths, documents = rows.anchors, rows.depths, rows.documents

    def attends(b: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        prefix = (depths[b, k] == 0) & (anchors[b, k] <= anchors[b, q])
        chain = (anchors[b, k] == anchors[b, q]) & (depths[b, k] <= depths[b, q])
        return (documents[b, k] == documents[b, q]) & (prefix | chain)

    return attends


def dense_mask(rows: CodRows) -> Tensor:
    """The rule written out. bool [B, 1, R, R], True where the query row sees the key row."""
    num_sequences, num_rows = rows.anchors.shape
    b = torch.arange(num_sequences, device=rows.anchors.device)[:, None, None, None]
    q = torch.arange(num_rows, device=rows.anchors.device)[None, None, :, None]
    k = q.transpose(2, 3)
    return mask_rule(rows)(b, torch.zeros_like(b), q, k)


def block_mask(rows: CodRows) -> BlockMask:
    """The rule for FlexAttention, which skips the blocks that nobody sees."""
    num_sequences, num_rows = rows.anchors.shape
    device = rows.anchors.device
    return create_block_mask(mask_rule(rows), num_sequences, None, num_rows, num_rows, device=str(device))


def attention_mask(rows: CodRows, implementation: str) -> Tensor | BlockMask:
    """The mask in the form that a Transformers attention implementation takes.

    Raises:
        ValueError: the implementation takes neither form.
    """
    if implementation == "sdpa":
        return dense_mask(rows)
    if implementation == "flex_attention":
        return block_mask(rows)
    raise ValueError(f"attn_implementation must be 'sdpa' or 'flex_attention' for COD; got {implementation!r}")
