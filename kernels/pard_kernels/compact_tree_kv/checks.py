"""What `compact_tree_kv` can be asked for: shapes and strides, read without a look at the device."""

import torch
from torch import Tensor

from pard_kernels.compact_tree_kv.cache_layout import MAX_ALIGNMENT, CacheLayout


def check_arguments(
    cache_addresses: Tensor,
    layout: CacheLayout,
    block_table: Tensor,
    block_size: int,
    request_slots: Tensor,
    num_computed: Tensor,
    accepted_rows: Tensor,
    num_sampled: Tensor,
) -> None:
    """Addresses that are addresses, words that divide the layout, as many requests everywhere."""
    if cache_addresses.dtype != torch.int64 or cache_addresses.dim() != 1:
        raise ValueError(
            f"cache_addresses must be [num_layers] int64; got {tuple(cache_addresses.shape)} {cache_addresses.dtype}"
        )
    *_, alignment = layout
    lengths = layout[2:-1]
    if not 1 <= alignment <= MAX_ALIGNMENT or MAX_ALIGNMENT % alignment or any(n % alignment for n in lengths):
        raise ValueError(f"alignment must be a power of 2 up to {MAX_ALIGNMENT} that divides all of it; got {layout}")
    if block_size < 1 or block_table.shape[1] < 1:
        raise ValueError(
            f"block_size and the width of block_table must be 1 at least; got {block_size} and "
            f"{tuple(block_table.shape)}"
        )
    num_reqs = num_sampled.shape[0]
    if request_slots.shape[0] < num_reqs:
        raise ValueError(
            f"num_sampled tells of {num_reqs} requests, request_slots must too; got {tuple(request_slots.shape)}"
        )
    by_slot = {"num_computed": num_computed, "accepted_rows": accepted_rows}
    for name, tensor in by_slot.items():
        if tensor.shape[0] != block_table.shape[0]:
            raise ValueError(
                f"block_table has {block_table.shape[0]} slots, {name} must too; got {tuple(tensor.shape)}"
            )
    others = {"cache_addresses": cache_addresses, "block_table": block_table, "num_sampled": num_sampled}
    for name, tensor in (others | by_slot | {"request_slots": request_slots}).items():
        if tensor.stride(-1) != 1:
            raise ValueError(f"{name} must be contiguous in the last dimension; got strides {tensor.stride()}")
