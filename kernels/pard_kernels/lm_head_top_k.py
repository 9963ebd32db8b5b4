"""The k best tokens of each hidden state, without the logits in memory. Definition: `reference_sampling.lm_head_top_k`.

One program takes a tile of rows through one split of the vocabulary: a tile of logits at a time lives in registers and
leaves its k best and its sum of exponentials. Splits, and ranks of tensor parallelism, meet in `merge_top_k`.

N rows · S splits · P parts
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pard_kernels.merge_top_k import HIGHEST, LOWEST, NO_ID, TopK, empty_lists, keep_best, merge_top_k

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_K = 64
PROGRAMS_PER_MULTIPROCESSOR = 2  # as many as fit beside each other: one wave


def launch_shape(num_rows: int, k: int, dtype: torch.dtype) -> dict[str, int]:
    """Tiles of one program by rows, k and dtype: rows against rows of weight, so many of the hidden size a time.

    All rows in one tile if they fit, so that each weight is read once. Buffers fit the 64 KiB of gfx942, where the
    compiler keeps num_stages - 1 of them. NVIDIA has no matrix instruction for full fp32, so its tiles are small.
    """
    is_wide = dtype.itemsize > 2
    max_rows = 16 if is_wide else 128 if k == 1 else 64
    block_rows = min(max(16, triton.next_power_of_2(num_rows)), max_rows)
    shape = {
        "BLOCK_ROWS": block_rows,
        "BLOCK_VOCAB": 64 if is_wide else 128,
        "BLOCK_HIDDEN": 32 if is_wide else 64,
        "num_warps": 4 if block_rows == 32 or is_wide else 8,
    }
    if torch.version.hip is not None:
        return shape | {"num_stages": 2}
    # Left to itself, ptxas spills to fit one more program beside the others.
    return shape | {"num_stages": 3 if block_rows > 64 or is_wide else 4, "maxnreg": 128 if block_rows == 16 else 255}


def top_k_workspace(*, num_rows: int, k: int, device: torch.device | str, num_splits: int | None = None) -> TopK:
    """Memory for the partial results of up to num_rows rows, and with it the number of splits at most.

    Left out, they are as many as give every multiprocessor its programs in one wave. A CUDA graph needs a workspace
    that lives as long as the graph; launches that run one after another can share it.
    """
    if num_splits is None:
        is_gpu = torch.device(device).type == "cuda"
        num_multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count if is_gpu else 1
        num_splits = PROGRAMS_PER_MULTIPROCESSOR * num_multiprocessors
    shape = (num_rows, num_splits, triton.next_power_of_2(k))  # rows first: what is merged lies together
    return TopK(
        ids=torch.empty(shape, dtype=torch.int32, device=device).transpose(0, 1),
        logits=torch.empty(shape, dtype=torch.float32, device=device).transpose(0, 1),
        log_sum_exps=torch.empty(shape[:2], dtype=torch.float32, device=device).transpose(0, 1),
    )


@triton.jit(do_not_specialize=["num_rows", "num_valid", "k", "num_row_tiles", "tiles_per_split"])
def _lm_head_top_k_kernel(
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


def _check_head(hidden: Tensor, weight: Tensor, weight_scale: Tensor | None, bias: Tensor | None) -> None:
    num_vocab_rows, hidden_size = weight.shape
    weight_dtype = hidden.dtype if weight_scale is None else torch.int8
    if hidden.shape[1:] != (hidden_size,) or hidden.dtype not in DTYPES or weight.dtype != weight_dtype:
        raise ValueError(
            f"hidden must be [N, {hidden_size}], as weight {tuple(weight.shape)}, and both of one dtype, float16, "
            f"bfloat16 or float32, or weight int8 with a weight_scale; got {tuple(hidden.shape)}, {hidden.dtype} and "
            f"{weight.dtype}"
        )
    for name, tensor in (("bias", bias), ("weight_scale", weight_scale)):
        if tensor is not None and tensor.shape != (num_vocab_rows,):
            raise ValueError(f"{name} must be [{num_vocab_rows}]; got {tuple(tensor.shape)}")


def _check_sizes(hidden: Tensor, num_vocab_rows: int, k: int, soft_cap: float, num_valid: int, workspace: TopK) -> None:
    if not 1 <= k <= min(MAX_K, num_valid) or num_valid > num_vocab_rows:
        raise ValueError(
            f"weight has {num_vocab_rows} rows, so num_valid must be 1 to {num_vocab_rows}, and k 1 to {MAX_K} and no "
            f"more than num_valid; got num_valid={num_valid} and k={k}"
        )
    if soft_cap < 0:
        raise ValueError(f"soft_cap must be 0 (none) or more; got {soft_cap}")
    if workspace.ids.shape[1] < hidden.shape[0] or workspace.ids.shape[2] != triton.next_power_of_2(k):
        got = f"{tuple(workspace.ids.shape)} [S, N, k as a power of two]"
        raise ValueError(f"the workspace must be top_k_workspace(num_rows={hidden.shape[0]} or more, k={k}); got {got}")


def lm_head_top_k(
    hidden: Tensor,
    weight: Tensor,
    *,
    k: int,
    weight_scale: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float = 1.0,
    soft_cap: float = 0.0,
    vocab_start: int = 0,
    num_valid: int | None = None,
    workspace: TopK | None = None,
) -> TopK:
    """Two launches. Definition and argument shapes: `reference_sampling.lm_head_top_k`."""
    num_rows, hidden_size = hidden.shape
    num_valid = weight.shape[0] if num_valid is None else num_valid
    workspace = workspace or top_k_workspace(num_rows=num_rows, k=k, device=hidden.device)
    _check_head(hidden, weight, weight_scale, bias)
    _check_sizes(hidden, weight.shape[0], k, soft_cap, num_valid, workspace)
    shape = launch_shape(num_rows, k, hidden.dtype)
    num_row_tiles = triton.cdiv(num_rows, shape["BLOCK_ROWS"])
    num_tiles = triton.cdiv(num_valid, shape["BLOCK_VOCAB"])
    tiles_per_split = triton.cdiv(num_tiles, workspace.ids.shape[0])
    num_splits = triton.cdiv(num_tiles, tiles_per_split)  # none is empty
    ids, logits, log_sum_exps = (part[:num_splits, :num_rows] for part in workspace)
    _lm_head_top_k_kernel[(num_row_tiles * num_splits,)](
        hidden, *hidden.stride(),
        weight, *weight.stride(),
        weight_scale, 0 if weight_scale is None else weight_scale.stride(0),
        bias, 0 if bias is None else bias.stride(0),
        ids, *ids.stride()[:2],
        logits, *logits.stride()[:2],
        log_sum_exps, *log_sum_exps.stride(),
        num_rows, hidden_size, num_valid, k, scale, soft_cap, num_row_tiles, tiles_per_split,
        BLOCK_K=ids.shape[2], PAD_HIDDEN=hidden_size % shape["BLOCK_HIDDEN"] > 0,
        IS_INT8=weight_scale is not None, HAS_BIAS=bias is not None, HAS_SOFT_CAP=soft_cap > 0, **shape,
    )  # fmt: skip
    return merge_top_k(ids, logits, log_sum_exps, k=k, vocab_start=vocab_start)
