"""What `prepare_draft_inputs` can be asked for: shapes and strides, read without a look at the device."""

import torch
from torch import Tensor

from pard_kernels.prepare_draft_inputs.reference import FeatureRows


def check_requests(
    request_slots: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    sample_rows: Tensor,
    kept_rows: Tensor | None,
    target_input_ids: Tensor,
) -> None:
    """As many requests everywhere; what tells of the target's step may stop at the last one that has a slot."""
    num_reqs = sample_rows.shape[0]
    if request_slots.shape[0] > num_reqs or query_start_loc.shape != (num_reqs + 1,) or seq_lens.shape[0] < num_reqs:
        raise ValueError(
            f"sample_rows {tuple(sample_rows.shape)} asks for {num_reqs} requests; got request_slots "
            f"{tuple(request_slots.shape)}, query_start_loc {tuple(query_start_loc.shape)} and seq_lens "
            f"{tuple(seq_lens.shape)}"
        )
    if not sample_rows.is_contiguous():
        raise ValueError(f"sample_rows must be contiguous; got strides {sample_rows.stride()}")
    if kept_rows is not None and kept_rows.shape[0] < target_input_ids.shape[0]:
        raise ValueError(
            f"kept_rows must have an entry for each of {target_input_ids.shape[0]} target rows; "
            f"got {tuple(kept_rows.shape)}"
        )


def check_buffers(input_ids: Tensor, positions: Tensor, slot_mappings: Tensor) -> None:
    """The kernel writes as many rows as input_ids has, at most."""
    num_rows = input_ids.shape[0]
    if positions.shape[0] < num_rows or slot_mappings.shape[1] < num_rows:
        raise ValueError(
            f"input_ids has {num_rows} rows, so positions and slot_mappings must have as many; "
            f"got {tuple(positions.shape)} and {tuple(slot_mappings.shape)}"
        )


def check_groups(
    all_token_ids: Tensor,
    block_tables: tuple[Tensor | None, ...],
    num_blocks: Tensor,
    slot_mappings: Tensor,
    block_sizes: tuple[int, ...],
) -> None:
    """One table, count, mapping and size for each group of the K/V cache."""
    num_groups = len(block_tables)
    if len(block_sizes) != num_groups or num_blocks.shape[0] < num_groups or slot_mappings.shape[0] < num_groups:
        raise ValueError(
            f"{num_groups} block_tables want as many block_sizes and rows of num_blocks and slot_mappings; "
            f"got {block_sizes}, {tuple(num_blocks.shape)} and {tuple(slot_mappings.shape)}"
        )
    rows = {"all_token_ids": all_token_ids, "num_blocks": num_blocks, "slot_mappings": slot_mappings}
    for name, tensor in [*rows.items(), *(("block_tables", table) for table in block_tables)]:
        if tensor is not None and tensor.stride(-1) != 1:
            raise ValueError(f"{name} must be contiguous in their last dimension; got strides {tensor.stride()}")


def check_features(features: FeatureRows | None, input_ids: Tensor, sample_rows: Tensor, last_sampled: Tensor) -> None:
    """A row for each draft row, a carry for each request, a count for each slot."""
    if features is None:
        return
    rows, carries, num_carried, _ = features
    num_rows, num_reqs, num_slots = input_ids.shape[0], sample_rows.shape[0], last_sampled.shape[0]
    if rows.shape[0] < num_rows or carries.shape[0] < num_reqs or num_carried.shape != (num_slots,):
        raise ValueError(
            f"features must have {num_rows} rows, {num_reqs} carries and num_carried for {num_slots} slots; got "
            f"{tuple(rows.shape)}, {tuple(carries.shape)} and {tuple(num_carried.shape)}"
        )
    for name, tensor in (("rows", rows), ("carries", carries)):
        if tensor.dtype != torch.int32 or not tensor.is_contiguous():
            raise ValueError(f"{name} of features must be contiguous int32; got {tensor.dtype}, {tensor.stride()}")
