"""The k best tokens of each hidden state, without the logits in memory. Definition: `reference.py`.

One program takes a tile of rows through one split of the vocabulary: a tile of logits at a time lives in registers and
leaves its k best and its sum of exponentials. Splits, and ranks of tensor parallelism, meet in `merge_top_k`.
"""

import triton
import triton.language as tl

from pard_kernels.lm_head_top_k.merge_top_k import HIGHEST, LOWEST, NO_ID, empty_lists, keep_best


@triton.jit(do_not_specialize=["num_rows", "num_valid", "k", "num_row_tiles", "tiles_per_split"])
def lm_head_top_k_kernel(
    hidden_ptr, stride_hidden_row, stride_hidden_dim,
    weight_ptr, stride_weight_row, stride_weight_dim,
    weight_scale_ptr, stride_weight_scale_row,
    bias_ptr, stride_bias_row,
    ids_ptr, stride_ids_split, stride_ids_row,
    logits_ptr, stride_logits_split, stride_logits_row,
    log_sum_exps_ptr, stride_log_sum_exps_split, stride_log_sum_exps_row,
    num_rows, hidden_size, num_valid, k, scale, soft_cap, num_row_tiles, tiles_per_split,
    BLOCK_ROWS: tl.constexpr, BLOCK_VOCAB: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
    BLOCK_K: tl.constexpr, PAD_HIDDEN: tl.constexpr,
    IS_INT8: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SOFT_CAP: tl.constexpr,
):  # fmt: skip
    # Row tiles of the same weights start side by side, so that the cache serves all but the first.
    row_tile = tl.program_id(0).to(tl.int64) % num_row_tiles
    split = tl.program_id(0).to(tl.int64) // num_row_tiles
    offs_row = row_tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    mask_row = offs_row < num_rows
    # Beyond the end the last row is read again and then dropped.
    hidden_ptrs = hidden_ptr + tl.minimum(offs_row, num_rows - 1)[:, None] * stride_hidden_row

    first_tile = (split * tiles_per_split).to(tl.int32)
    end_tile = tl.minimum(first_tile + tiles_per_split, tl.cdiv(num_valid, BLOCK_VOCAB))
    # The maximum, which exponents are relative to; finite, so that no difference of infinities is NaN.
    row_base = tl.full([BLOCK_ROWS], LOWEST, tl.float32)
    row_sum = tl.zeros([BLOCK_ROWS], tl.float32)
    top, top_ids = empty_lists(BLOCK_ROWS, BLOCK_K)

    for tile in range(first_tile, end_tile):
        offs_vocab = tile * BLOCK_VOCAB + tl.arange(0, BLOCK_VOCAB)
        vocab_rows = tl.minimum(offs_vocab, num_valid - 1).to(tl.int64)
        weight_ptrs = weight_ptr + vocab_rows[None, :] * stride_weight_row
        logits = tl.zeros([BLOCK_ROWS, BLOCK_VOCAB], tl.float32)
        for start in range(0, hidden_size, BLOCK_HIDDEN):
            offs_dim = (start + tl.arange(0, BLOCK_HIDDEN)).to(tl.int64)
            if PAD_HIDDEN:
                mask_dim = offs_dim < hidden_size
                hidden = tl.load(hidden_ptrs + offs_dim[None, :] * stride_hidden_dim, mask=mask_dim[None, :], other=0.0)
                weight = tl.load(weight_ptrs + offs_dim[:, None] * stride_weight_dim, mask=mask_dim[:, None], other=0.0)
            else:
                hidden = tl.load(hidden_ptrs + offs_dim[None, :] * stride_hidden_dim)  # [BLOCK_ROWS, BLOCK_HIDDEN]
                weight = tl.load(weight_ptrs + offs_dim[:, None] * stride_weight_dim)  # [BLOCK_HIDDEN, BLOCK_VOCAB]
            logits = tl.dot(hidden, weight.to(hidden.dtype), logits, input_precision="ieee")
        if IS_INT8:
            logits *= tl.load(weight_scale_ptr + vocab_rows * stride_weight_scale_row)[None, :]
        if HAS_BIAS:
            logits += tl.load(bias_ptr + vocab_rows * stride_bias_row).to(tl.float32)[None, :]
        if HAS_SOFT_CAP:
            # tanh(x) = 2 sigmoid(2 x) - 1: the language has no tanh that all backends share.
            logits = soft_cap * (2.0 * tl.sigmoid(logits * (2.0 / soft_cap)) - 1.0)
        logits *= scale
        # NaN becomes -inf, padding too. A comparison for each logit would fill the scalar registers of AMD GPUs.
        limit = tl.where(offs_vocab < num_valid, float("inf"), float("-inf"))
        logits = tl.minimum(tl.maximum(logits, float("-inf")), limit[None, :])

        tile_max = tl.max(logits, 1)
        new_base = tl.maximum(row_base, tl.minimum(tile_max, HIGHEST))
        row_sum *= tl.exp(row_base - new_base)
        row_sum += tl.sum(tl.exp(logits - new_base[:, None]), 1)
        row_base = new_base
        if BLOCK_K > 1:
            top, top_ids = keep_best(top, top_ids, tl.maximum(logits, LOWEST), offs_vocab[None, :], k)
        else:
            tile_id = tl.min(tl.where(logits == tile_max[:, None], offs_vocab[None, :], NO_ID), 1)
            best = tl.maximum(tile_max, LOWEST)[:, None]
            top_ids = tl.where(best > top, tile_id[:, None], top_ids)
            top = tl.maximum(best, top)

    log_sum_exps_ptrs = log_sum_exps_ptr + split * stride_log_sum_exps_split + offs_row * stride_log_sum_exps_row
    tl.store(log_sum_exps_ptrs, row_base + tl.log(row_sum), mask=mask_row)
    ids_ptrs = ids_ptr + split * stride_ids_split + offs_row * stride_ids_row
    logits_ptrs = logits_ptr + split * stride_logits_split + offs_row * stride_logits_row
    offs_k = tl.arange(0, BLOCK_K)[None, :]
    tl.store(ids_ptrs[:, None] + offs_k, top_ids, mask=mask_row[:, None])
    tl.store(logits_ptrs[:, None] + offs_k, top, mask=mask_row[:, None])
