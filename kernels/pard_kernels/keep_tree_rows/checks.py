"""What `keep_tree_rows` can be asked for: shapes and strides, read without a look at the device."""

import torch
from torch import Tensor


def check_arguments(
    kept_rows: Tensor,
    row_starts: Tensor,
    logit_starts: Tensor,
    request_slots: Tensor,
    accepted_rows: Tensor,
    num_sampled: Tensor,
) -> None:
    """As many requests everywhere, rows of 32 bits, tensors that can be read element by element."""
    num_reqs = row_starts.shape[0] - 1
    if logit_starts.shape[0] != num_reqs + 1:
        raise ValueError(f"row_starts tells of {num_reqs} requests, logit_starts of {logit_starts.shape[0] - 1}")
    per_request = {"request_slots": request_slots, "num_sampled": num_sampled}
    for name, tensor in per_request.items():
        if tensor.shape[0] < num_reqs:
            raise ValueError(f"row_starts tells of {num_reqs} requests, {name} must too; got {tuple(tensor.shape)}")
    int32 = {"kept_rows": kept_rows, "accepted_rows": accepted_rows, "num_sampled": num_sampled}
    for name, tensor in int32.items():
        if tensor.dtype != torch.int32:
            raise ValueError(f"{name} must be int32; got {tensor.dtype}")
    others = {"row_starts": row_starts, "logit_starts": logit_starts, "request_slots": request_slots}
    for name, tensor in (int32 | others).items():
        if tensor.stride(-1) != 1:
            raise ValueError(f"{name} must be contiguous in the last dimension; got strides {tensor.stride()}")
