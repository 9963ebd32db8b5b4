"""FlexAttention's block mask of a rule: which blocks of queries and keys nobody sees, and which all see.

`create_block_mask` looks at all R x R pairs at once unless it is compiled, and compiled by torch 2.11 its sort of the
blocks keeps Triton busy for minutes. This looks at some queries at a time, and nothing is compiled.

R rows · Q blocks of queries · K blocks of keys
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

__all__ = ["BLOCK", "block_mask"]

BLOCK = 128  # FlexAttention's
PAIRS_AT_ONCE = 1 << 26  # 64 MiB for each comparison of a rule

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (batch, head, query row, key row) -> bool


def block_mask(rule: Rule, num_rows: int, device: torch.device) -> BlockMask:
    """What `create_block_mask(rule, 1, None, num_rows, num_rows)` gives."""
    keys = torch.arange(num_rows, device=device)
    num_blocks_at_once = max(1, PAIRS_AT_ONCE // (max(1, num_rows) * BLOCK))
    portions = torch.split(keys, num_blocks_at_once * BLOCK)
    num_pairs = torch.cat([_seen_pairs(rule, queries, keys) for queries in portions])  # [Q, K]
    is_full = num_pairs == BLOCK * BLOCK
    blocks = *_in_order((num_pairs > 0) & ~is_full), *_in_order(is_full)
    return BlockMask.from_kv_blocks(*blocks, BLOCK_SIZE=BLOCK, mask_mod=rule, seq_lengths=(num_rows, num_rows))


def _seen_pairs(rule: Rule, queries: Tensor, keys: Tensor) -> Tensor:
    """How many pairs are seen in each block. int32 [blocks of these queries, K]"""
    zero = torch.zeros_like(keys[0])
    seen = rule(zero, zero, queries[:, None], keys[None, :])  # bool [queries, R]
    seen = F.pad(seen, (0, -len(keys) % BLOCK, 0, -len(queries) % BLOCK))
    blocks = seen.view(-1, BLOCK, seen.shape[1] // BLOCK, BLOCK)
    return blocks.sum(dim=(1, 3), dtype=torch.int32)


def _in_order(is_listed: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys are listed for each of queries, and these ahead of the others.

    bool [Q, K] -> int32 [1, 1, Q], [1, 1, Q, K]
    """
    order = is_listed.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return is_listed.sum(dim=-1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]
