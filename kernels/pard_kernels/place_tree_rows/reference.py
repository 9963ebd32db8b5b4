"""Where the rows of trees lie, and whom they see: the twin that the kernel is tested against.

B requests · S request slots · N nodes of a tree · T rows of all requests
"""

from itertools import pairwise

import torch
from torch import Tensor

from pard_kernels.tree_rows import MAX_TREE_ROWS


def place_tree_rows(
    *,
    positions: Tensor,  # [T] int64, in and out
    row_masks: Tensor | None,  # [T] int64, out; None: nobody asks
    row_starts: Tensor,  # [B + 1] int32
    logit_starts: Tensor,  # [B + 1] int32
    request_slots: Tensor,  # [>= B] int32 or int64, -1 for a request that must not be touched
    depths: Tensor,  # [S, N + 1] int32
    ancestors: Tensor,  # [S, N + 1] int64
    sign: int,  # 1, or -1 for the way back
) -> None:
    """Move the positions of tree rows from rows to depths, or back, and say which new rows each row sees.

    Request b has the rows `row_starts[b] : row_starts[b + 1]` at positions that follow one another, of which the
    target's answer is asked in the last `logit_starts[b + 1] - logit_starts[b]`. Two and more are those of a tree, row
    r of it being row r of the request: the root first, then nodes. A node stands where it would if its path were the
    text, at the root's position plus its depth, and sees its path. Other requests keep their positions, and each row
    sees itself and those before it.

    Bit j of a row's mask is row j of the request. Masks of a request's rows beyond the 64th are not written: there is
    no bit for them. A request without a slot is left alone.
    """
    for req, ((start, stop), (first, end)) in enumerate(
        zip(pairwise(row_starts.tolist()), pairwise(logit_starts.tolist()), strict=True)
    ):
        slot, rows = int(request_slots[req]), torch.arange(min(stop - start, MAX_TREE_ROWS), device=positions.device)
        if slot < 0:
            continue
        here = slice(start, start + len(rows))
        is_tree = end - first > 1
        if is_tree:
            positions[here] += sign * (depths[slot, rows] - rows)
        if row_masks is not None:
            row_masks[here] = ancestors[slot, rows] if is_tree else causal_masks(rows)


def causal_masks(rows: Tensor) -> Tensor:
    """Each row of a chain sees itself and those before it. int64 [...], all below 64 -> int64 [...]"""
    return (torch.full_like(rows, 2) << rows) - 1  # of row 63, 0 - 1: all bits
