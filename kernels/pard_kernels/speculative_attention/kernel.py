"""Attention of a few new rows per request over a paged prefix. Definition, shapes: `reference.py`.

One program takes a tile of query rows (new rows x the heads that share a KV head) through one split of the prefix.
The prefix needs no mask but its end; the new rows' own keys and values are a dense block under a bit mask. Splits meet
in `merge_attention_splits`.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _load_tile(ptr, offs_row, offs_dim, mask_row, mask_dim):
    mask = mask_row[:, None] & mask_dim[None, :]
    return tl.load(ptr + (offs_row[:, None] + offs_dim[None, :]), mask=mask, other=0.0)


@triton.jit
def _weigh(query, key, bias, row_max, row_sum, scale, soft_cap, HAS_SOFT_CAP: tl.constexpr):
    """One online-softmax step in base 2; a row that has seen nothing keeps row_max = -inf and row_sum = 0.

    bias is 0 or -inf. A select of each score instead takes so many predicates that gfx942 spills them.
    """
    scores = tl.dot(query, tl.trans(key), input_precision="ieee")  # [BLOCK_M, BLOCK_N]
    if HAS_SOFT_CAP:
        # tanh(x) = 2 sigmoid(2 x) - 1: the language has no tanh that all backends share.
        scores = soft_cap * (2.0 * tl.sigmoid(scores * (2.0 * scale / soft_cap)) - 1.0)
        exponents = scores * LOG2_E + bias
    else:
        exponents = scores * (scale * LOG2_E) + bias
    new_max = tl.maximum(row_max, tl.max(exponents, 1))
    base = tl.where(new_max == float("-inf"), 0.0, new_max)
    weights = tl.exp2(exponents - base[:, None])
    decay = tl.exp2(row_max - base)
    return weights, decay, new_max, row_sum * decay + tl.sum(weights, 1)


@triton.jit
def _round_to_cache(tile, scale_ptr, cache_ptr, FP8_MAX: tl.constexpr):
    """What the tile would be once written to an FP8 cache, still to be multiplied by the scale."""
    scaled = tile.to(tl.float32) / tl.load(scale_ptr)
    return tl.clamp(scaled, -FP8_MAX, FP8_MAX).to(cache_ptr.dtype.element_ty).to(tile.dtype)


# A launch is specialised by nothing that changes from step to step: sizes of the batch, and where in a tensor of the
# whole batch the requests begin.
@triton.jit(
    do_not_specialize=[
        "block_table_ptr", "stride_block_table_req", "query_start_loc_ptr", "num_cached_ptr", "ancestor_masks_ptr",
        "key_scale_ptr", "value_scale_ptr", "num_partial_rows", "window", "num_splits", "num_row_tiles",
    ]
)  # fmt: skip
def speculative_attention_kernel(
    query_ptr, stride_query_row, stride_query_head,
    key_ptr, stride_key_row, stride_key_head,
    value_ptr, stride_value_row, stride_value_head,
    key_cache_ptr, value_cache_ptr, stride_cache_block, stride_cache_slot, stride_cache_head, stride_cache_dim,
    block_table_ptr, stride_block_table_req,
    query_start_loc_ptr, num_cached_ptr, ancestor_masks_ptr, key_scale_ptr, value_scale_ptr,
    out_ptr, stride_out_row, stride_out_head,
    partial_output_ptr, log_sum_exp_ptr, num_partial_rows,
    scale, soft_cap, window, num_splits, num_kv_heads, num_row_tiles,
    GROUP_SIZE: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_NEW: tl.constexpr, BLOCK_HEAD: tl.constexpr,
    HAS_ANCESTORS: tl.constexpr, HAS_SOFT_CAP: tl.constexpr, HAS_WINDOW: tl.constexpr,
    IS_FP8: tl.constexpr, FP8_MAX: tl.constexpr, IS_SPLIT: tl.constexpr,
    HAS_ROW_TILES: tl.constexpr,
):  # fmt: skip
    # Tiles of the same keys and values start side by side, so that the cache serves all but the first.
    program = tl.program_id(0)
    row_tile = 0  # known to the compiler where it can be: sm_80 spills registers otherwise
    if HAS_ROW_TILES:
        row_tile = program % num_row_tiles
        program = program // num_row_tiles
    kv_head = (program % num_kv_heads).to(tl.int64)
    req = (program // num_kv_heads).to(tl.int64)
    split = tl.program_id(1)
    is_last = split == num_splits - 1

    first_row = tl.load(query_start_loc_ptr + req).to(tl.int64)
    num_rows = (tl.load(query_start_loc_ptr + req + 1) - first_row).to(tl.int32)
    if row_tile * BLOCK_M >= num_rows * GROUP_SIZE:
        return
    offs_m = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_row = offs_m // GROUP_SIZE  # [BLOCK_M] new row of the request
    offs_head = kv_head * GROUP_SIZE + offs_m % GROUP_SIZE
    mask_m = offs_row < num_rows
    offs_dim = tl.arange(0, BLOCK_HEAD)
    mask_dim = offs_dim < HEAD_SIZE

    num_cached = tl.load(num_cached_ptr + req)
    first_cached = 0
    if HAS_WINDOW:
        first_cached = tl.maximum(num_cached - window + 1, 0)
    first_tile = first_cached // BLOCK_N
    num_tiles = tl.cdiv(num_cached, BLOCK_N)
    # The last split takes the new rows' tiles too: they are among those that are divided, and so is their rest.
    tiles_per_split = tl.cdiv(num_tiles - first_tile + tl.cdiv(num_rows, BLOCK_NEW), num_splits)
    begin = first_tile + split * tiles_per_split
    end = tl.minimum(begin + tiles_per_split, num_tiles)
    if IS_SPLIT:
        # Partial results lie as [num_splits, num_partial_rows, num_heads].
        partial_rows = split.to(tl.int64) * num_partial_rows + first_row + offs_row
        partial_offsets = partial_rows * (num_kv_heads * GROUP_SIZE) + offs_head
        if (begin >= end) & (not is_last):
            tl.store(log_sum_exp_ptr + partial_offsets, float("-inf"), mask=mask_m)
            return

    query_offsets = (first_row + offs_row) * stride_query_row + offs_head * stride_query_head  # [BLOCK_M]
    query = _load_tile(query_ptr, query_offsets, offs_dim, mask_m, mask_dim)
    if HAS_ANCESTORS:
        ancestors = tl.load(ancestor_masks_ptr + first_row + offs_row, mask=mask_m, other=0)  # [BLOCK_M]
    if HAS_WINDOW:
        # A row's own position is as far behind the prefix as it sees new rows.
        num_seen = offs_row + 1
        if HAS_ANCESTORS:
            offs_bit = tl.arange(0, 64)
            bits = (ancestors[:, None] >> offs_bit[None, :].to(tl.int64)) & (offs_bit < num_rows)[None, :].to(tl.int64)
            num_seen = tl.maximum(tl.sum(bits, 1), 1).to(tl.int32)
        first_seen = num_cached + num_seen - window

    score_scale = scale
    if IS_FP8:
        score_scale = scale * tl.load(key_scale_ptr)
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_HEAD], tl.float32)
    offs_cache_dim = offs_dim.to(tl.int64) * stride_cache_dim
    block_table_ptr += req * stride_block_table_req
    key_cache_ptr += kv_head * stride_cache_head
    value_cache_ptr += kv_head * stride_cache_head

    for tile in range(begin, end):
        offs_n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        mask_n = offs_n < num_cached
        bias = tl.where(mask_n, 0.0, float("-inf"))[None, :]
        if HAS_WINDOW:
            mask_n = mask_n & (offs_n >= first_cached)
            bias += tl.where(offs_n[None, :] >= first_seen[:, None], 0.0, float("-inf"))
        block = tl.load(block_table_ptr + offs_n // BLOCK_SIZE, mask=mask_n, other=0).to(tl.int64)
        offs_cache = block * stride_cache_block + (offs_n % BLOCK_SIZE).to(tl.int64) * stride_cache_slot
        key = _load_tile(key_cache_ptr, offs_cache, offs_cache_dim, mask_n, mask_dim)
        weights, decay, row_max, row_sum = _weigh(
            query, key.to(query.dtype), bias, row_max, row_sum, score_scale, soft_cap, HAS_SOFT_CAP
        )
        value = _load_tile(value_cache_ptr, offs_cache, offs_cache_dim, mask_n, mask_dim).to(query.dtype)
        acc = tl.dot(weights.to(query.dtype), value, acc * decay[:, None], input_precision="ieee")

    if is_last:
        for new in tl.range(0, num_rows, BLOCK_NEW, num_stages=1):
            offs_new = new + tl.arange(0, BLOCK_NEW)
            mask_new = offs_new < num_rows
            if HAS_ANCESTORS:
                sees = ((ancestors[:, None] >> offs_new[None, :].to(tl.int64)) & 1) != 0
            else:
                sees = offs_new[None, :] <= offs_row[:, None]
            bias = tl.where(sees & mask_new[None, :], 0.0, float("-inf"))
            offs_key = (first_row + offs_new) * stride_key_row + kv_head * stride_key_head
            key = _load_tile(key_ptr, offs_key, offs_dim, mask_new, mask_dim)
            if IS_FP8:
                key = _round_to_cache(key, key_scale_ptr, key_cache_ptr, FP8_MAX)
            weights, decay, row_max, row_sum = _weigh(
                query, key, bias, row_max, row_sum, score_scale, soft_cap, HAS_SOFT_CAP
            )
            offs_value = (first_row + offs_new) * stride_value_row + kv_head * stride_value_head
            value = _load_tile(value_ptr, offs_value, offs_dim, mask_new, mask_dim)
            if IS_FP8:
                value = _round_to_cache(value, value_scale_ptr, value_cache_ptr, FP8_MAX)
            acc = tl.dot(weights.to(query.dtype), value, acc * decay[:, None], input_precision="ieee")

    row_sum = tl.where(row_sum > 0.0, row_sum, 1.0)
    result = acc / row_sum[:, None]
    if IS_FP8:
        result *= tl.load(value_scale_ptr)
    mask_out = mask_m[:, None] & mask_dim[None, :]
    if IS_SPLIT:
        tl.store(log_sum_exp_ptr + partial_offsets, row_max + tl.log2(row_sum), mask=mask_m)
        out_offsets = (partial_offsets * HEAD_SIZE)[:, None] + offs_dim[None, :]
        tl.store(partial_output_ptr + out_offsets, result, mask=mask_out)
    else:
        offs_out = (first_row + offs_row) * stride_out_row + offs_head * stride_out_head
        out_ptrs = out_ptr + offs_out[:, None] + offs_dim[None, :]
        tl.store(out_ptrs, result.to(out_ptr.dtype.element_ty), mask=mask_out)
