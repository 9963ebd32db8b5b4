"""The launch of `speculative_attention`, and everything that can be compiled for it ahead."""

from typing import Any

import torch
from torch import Tensor

from pard_kernels.speculative_attention.checks import check_options, check_tensors, check_workspace
from pard_kernels.speculative_attention.kernel import speculative_attention_kernel
from pard_kernels.speculative_attention.launch_shape import (
    LaunchShape,
    Workspace,
    launch_shape,
    launch_variants,
    power_of_two,
    workspace,
)
from pard_kernels.speculative_attention.merge_attention_splits import merge_attention_splits


def speculative_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    query_start_loc: Tensor,
    num_cached: Tensor,
    *,
    scale: float,
    max_num_rows: int,
    num_splits: int,
    ancestor_masks: Tensor | None = None,
    soft_cap: float = 0.0,
    window: int | None = None,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    out: Tensor | None = None,
    partial: Workspace | None = None,
) -> Tensor:
    """One launch, and one that merges if num_splits > 1. Definition: `reference.speculative_attention`."""
    check_tensors(query, key, value, key_cache, value_cache, block_table, query_start_loc, num_cached, out)
    check_options(query, key_cache, max_num_rows, num_splits, scale, ancestor_masks, window, key_scale, value_scale)
    num_rows, num_heads, head_size = query.shape
    num_kv_heads = key.shape[1]
    out = torch.empty_like(query) if out is None else out
    if num_splits > 1:
        partial = partial or workspace(num_splits, num_rows, num_heads, head_size, query.device)
        check_workspace(partial, num_splits, num_rows, num_heads, head_size)
    else:
        partial = None
    shape = _shape(query, key, max_num_rows, num_splits, ancestor_masks, soft_cap, window, key_scale)
    grid = (num_cached.shape[0] * num_kv_heads * shape.num_row_tiles, num_splits)
    speculative_attention_kernel[grid](
        query, *query.stride()[:2],
        key, *key.stride()[:2],
        value, *value.stride()[:2],
        key_cache, value_cache, *key_cache.stride(),
        block_table, block_table.stride(0),
        query_start_loc, num_cached, ancestor_masks, key_scale, value_scale,
        out, *out.stride()[:2],
        *((*partial, partial.output.shape[1]) if partial else (None, None, 0)),
        scale, soft_cap, window or 0, num_splits, num_kv_heads, shape.num_row_tiles,
        GROUP_SIZE=num_heads // num_kv_heads, HEAD_SIZE=head_size, BLOCK_SIZE=key_cache.shape[1],
        BLOCK_M=shape.block_rows, BLOCK_N=shape.block_cached, BLOCK_NEW=shape.block_new,
        BLOCK_HEAD=power_of_two(head_size),
        HAS_ANCESTORS=ancestor_masks is not None, HAS_SOFT_CAP=soft_cap > 0, HAS_WINDOW=window is not None,
        IS_FP8=key_scale is not None, FP8_MAX=torch.finfo(key_cache.dtype).max, IS_SPLIT=partial is not None,
        HAS_ROW_TILES=shape.num_row_tiles > 1,
        **shape.compiler_options,
    )  # fmt: skip
    if partial:
        merge_attention_splits(*partial, num_splits, query_start_loc, out)
    return out


def warm_up_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    query_start_loc: Tensor,
    num_cached: Tensor,
    *,
    max_num_rows: int,
    max_num_splits: int,
    ancestor_masks: Tensor | None = None,
    **options: Any,
) -> None:
    """Compile all that `speculative_attention` on these tensors, or slices of them by requests, can need.

    Arguments are those of any call of an engine: no row is read, only what a launch is specialised by. The engine's
    calls then have up to max_num_rows rows a request and up to max_num_splits splits, which `choose_num_splits` gives
    for one request of one row at the greatest length. Calls of no request are made, which launch nothing.
    """
    nothing = slice(0, 0)
    no_masks = None if ancestor_masks is None else ancestor_masks[nothing]
    calls = launch_variants(
        max_num_rows,
        max_num_splits,
        lambda num_rows, num_splits: _shape(
            query, key, num_rows, num_splits, no_masks,
            options.get("soft_cap", 0.0), options.get("window"), options.get("key_scale"),
        ),
    )  # fmt: skip
    for num_rows, num_splits in calls:
        speculative_attention(
            query[nothing], key[nothing], value[nothing], key_cache, value_cache,
            block_table[nothing], query_start_loc[:1], num_cached[nothing],
            max_num_rows=num_rows, num_splits=num_splits, ancestor_masks=no_masks, **options,
        )  # fmt: skip


def _shape(
    query: Tensor,
    key: Tensor,
    max_num_rows: int,
    num_splits: int,
    ancestor_masks: Tensor | None,
    soft_cap: float,
    window: int | None,
    key_scale: Tensor | None,
) -> LaunchShape:
    return launch_shape(
        max_num_rows,
        query.shape[1] // key.shape[1],
        query.shape[2],
        query.dtype,
        is_heavy=key_scale is not None or soft_cap > 0 or window is not None,
        is_whole_tree=ancestor_masks is not None and num_splits == 1,
    )
