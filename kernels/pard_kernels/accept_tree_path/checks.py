"""What `accept_tree_path` can be asked for: shapes and strides, read without a look at the device."""

import torch
from torch import Tensor

from pard_kernels.tree_rows import MAX_TREE_ROWS


def check_arguments(
    target_token_ids: Tensor,
    draft_token_ids: Tensor,
    row_starts: Tensor,
    parents: Tensor,
    is_chain_only: Tensor,
    request_slots: Tensor,
    token_ids: Tensor,
    accepted_rows: Tensor,
    num_sampled: Tensor,
) -> None:
    """As many requests everywhere, a tree's rows in one vector, room for a token at least."""
    if target_token_ids.shape != draft_token_ids.shape:
        raise ValueError(
            f"each row has a target token and a draft token; got target_token_ids {tuple(target_token_ids.shape)} and "
            f"draft_token_ids {tuple(draft_token_ids.shape)}"
        )
    if not 1 <= parents.shape[1] <= MAX_TREE_ROWS:
        raise ValueError(f"parents must have 1 to {MAX_TREE_ROWS} rows for each slot; got {tuple(parents.shape)}")
    num_slots = parents.shape[0]
    if is_chain_only.shape != (num_slots,) or is_chain_only.dtype != torch.bool or accepted_rows.shape[0] != num_slots:
        raise ValueError(
            f"parents has {num_slots} slots, is_chain_only must be bool [{num_slots}] and accepted_rows must have as "
            f"many rows; got {is_chain_only.dtype} {tuple(is_chain_only.shape)} and {tuple(accepted_rows.shape)}"
        )
    num_reqs, width = row_starts.shape[0] - 1, token_ids.shape[1]
    per_request = {"request_slots": request_slots, "token_ids": token_ids, "num_sampled": num_sampled}
    for name, tensor in per_request.items():
        if tensor.shape[0] < num_reqs:
            raise ValueError(f"row_starts tells of {num_reqs} requests, {name} must too; got {tuple(tensor.shape)}")
    if width < 1 or accepted_rows.shape[1] < width:
        raise ValueError(
            f"token_ids must have room for a token, and accepted_rows for as many rows; got {tuple(token_ids.shape)} "
            f"and {tuple(accepted_rows.shape)}"
        )
    others = {"target_token_ids": target_token_ids, "draft_token_ids": draft_token_ids}
    others |= {"row_starts": row_starts, "parents": parents, "is_chain_only": is_chain_only}
    others |= {"accepted_rows": accepted_rows}
    for name, tensor in (others | per_request).items():
        if tensor.stride(-1) != 1:
            raise ValueError(f"{name} must be contiguous in the last dimension; got strides {tensor.stride()}")
