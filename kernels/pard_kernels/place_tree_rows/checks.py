"""What `place_tree_rows` can be asked for: shapes and strides, read without a look at the device."""

import torch
from torch import Tensor

from pard_kernels.tree_rows import MAX_TREE_ROWS


def check_arguments(
    positions: Tensor,
    row_masks: Tensor | None,
    row_starts: Tensor,
    logit_starts: Tensor,
    request_slots: Tensor,
    depths: Tensor,
    ancestors: Tensor,
    sign: int,
) -> None:
    """As many requests everywhere, trees whose rows all have a bit, tensors that can be read element by element."""
    num_reqs = row_starts.shape[0] - 1
    if logit_starts.shape[0] != num_reqs + 1 or request_slots.shape[0] < num_reqs:
        raise ValueError(
            f"row_starts tells of {num_reqs} requests, logit_starts and request_slots must too; got "
            f"{tuple(logit_starts.shape)} and {tuple(request_slots.shape)}"
        )
    if depths.shape != ancestors.shape or not 1 <= depths.shape[1] <= MAX_TREE_ROWS:
        raise ValueError(
            f"depths and ancestors must both have 1 to {MAX_TREE_ROWS} rows for each slot; "
            f"got {tuple(depths.shape)} and {tuple(ancestors.shape)}"
        )
    if sign not in (1, -1):
        raise ValueError(f"sign must be 1, or -1 for the way back; got {sign}")
    int64 = {"positions": positions, "ancestors": ancestors} | ({} if row_masks is None else {"row_masks": row_masks})
    for name, tensor in int64.items():
        if tensor.dtype != torch.int64:
            raise ValueError(f"{name} must be int64; got {tensor.dtype}")
    others = {"row_starts": row_starts, "logit_starts": logit_starts, "request_slots": request_slots, "depths": depths}
    for name, tensor in (int64 | others).items():
        if tensor.stride(-1) != 1:
            raise ValueError(f"{name} must be contiguous in the last dimension; got strides {tensor.stride()}")
