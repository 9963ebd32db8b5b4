"""The k best tokens of each hidden state, without the logits in memory. Definition: `reference_sampling.lm_head_top_k`.

One program takes a tile of rows through one split of the vocabulary: a tile of logits at a time lives in registers and
leaves its k best and its sum of exponentials. Splits, and ranks of tensor parallelism, meet in `merge_top_k`.

N rows · S splits · P parts
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_K = 64
MAX_CANDIDATES = 1024  # that are merged at a time
PROGRAMS_PER_MULTIPROCESSOR = 2  # as many as fit beside each other: one wave

NO_ID = tl.constexpr(1 << 30)  # and above: ids that no token has
HIGHEST = tl.constexpr(torch.finfo(torch.float32).max)
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)  # stands for -inf where -inf means none


class TopK(NamedTuple):
    """Tokens from the best down; of equal logits the smallest id is best. A workspace adds splits in front."""

    ids: Tensor  # [N, k] int64
    logits: Tensor  # [N, k] float32
    log_sum_exps: Tensor  # [N] float32


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


@triton.jit
def _keep_best(top, top_ids, logits, ids, k):
    """Let the k best logits of a tile into the lists of the best so far, which are in no order; -inf means none.

    Ends early once no row's next best gets in.
    """
    num_taken = 0
    is_open = True
    while is_open:
        best = tl.max(logits, 1)[:, None]
        best_id = tl.min(tl.where(logits == best, ids, NO_ID), 1)[:, None]
        worst = tl.min(top, 1)[:, None]
        worst_id = tl.max(tl.where(top == worst, top_ids, -1), 1)[:, None]
        gets_in = (best > worst) | ((best == worst) & (best_id < worst_id) & (best > float("-inf")))
        is_replaced = gets_in & (top_ids == worst_id)
        top = tl.where(is_replaced, best, top)
        top_ids = tl.where(is_replaced, best_id, top_ids)
        logits = tl.where(ids == best_id, float("-inf"), logits)
        num_taken += 1
        is_open = (num_taken < k) & (tl.max(gets_in.to(tl.int32)) > 0)
    return top, top_ids


@triton.jit
def _empty_lists(NUM_LISTS: tl.constexpr, BLOCK_K: tl.constexpr):
    """Nothing in them; ids differ, so that one slot is replaced at a time."""
    ids = NO_ID + tl.arange(0, BLOCK_K)[None, :] + tl.zeros([NUM_LISTS, BLOCK_K], tl.int32)
    return tl.full([NUM_LISTS, BLOCK_K], float("-inf"), tl.float32), ids


@triton.jit(do_not_specialize=["num_rows", "num_valid", "k", "num_row_tiles", "tiles_per_split"])
def _lm_head_top_k_kernel(
    hidden_ptr, stride_hidden_row, stride_hidden_dim,
    weight_ptr, stride_weight_row, stride_weight_dim,
    bias_ptr, stride_bias_row,
    ids_ptr, stride_ids_split, stride_ids_row,
    logits_ptr, stride_logits_split, stride_logits_row,
    log_sum_exps_ptr, stride_log_sum_exps_split, stride_log_sum_exps_row,
    num_rows, hidden_size, num_valid, k, scale, soft_cap, num_row_tiles, tiles_per_split,
    BLOCK_ROWS: tl.constexpr, BLOCK_VOCAB: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
    BLOCK_K: tl.constexpr, PAD_HIDDEN: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SOFT_CAP: tl.constexpr,
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
    top, top_ids = _empty_lists(BLOCK_ROWS, BLOCK_K)

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
            logits = tl.dot(hidden, weight, logits, input_precision="ieee")
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
            top, top_ids = _keep_best(top, top_ids, tl.maximum(logits, LOWEST), offs_vocab[None, :], k)
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


@triton.jit(do_not_specialize=["num_parts", "num_slots", "k", "vocab_start"])
def _merge_top_k_kernel(
    part_ids_ptr, stride_part_ids_part, stride_part_ids_row, stride_part_ids_slot,
    part_logits_ptr, stride_part_logits_part, stride_part_logits_row, stride_part_logits_slot,
    part_log_sum_exps_ptr, stride_part_log_sum_exps_part, stride_part_log_sum_exps_row,
    ids_ptr, logits_ptr, log_sum_exps_ptr,
    num_parts, num_slots, k, vocab_start,
    BLOCK_PARTS: tl.constexpr, BLOCK_CANDIDATES: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    offs_part = tl.arange(0, BLOCK_PARTS).to(tl.int64)
    log_sums_offsets = offs_part * stride_part_log_sum_exps_part + row * stride_part_log_sum_exps_row
    log_sums = tl.load(part_log_sum_exps_ptr + log_sums_offsets, mask=offs_part < num_parts, other=float("-inf"))
    base = tl.minimum(tl.maximum(tl.max(log_sums, 0), LOWEST), HIGHEST)
    tl.store(log_sum_exps_ptr + row, base + tl.log(tl.sum(tl.exp(log_sums - base), 0)))

    top, top_ids = _empty_lists(1, BLOCK_K)
    for start in range(0, num_parts * num_slots, BLOCK_CANDIDATES):
        offs_candidate = (start + tl.arange(0, BLOCK_CANDIDATES)).to(tl.int64)[None, :]
        part, slot = offs_candidate // num_slots, offs_candidate % num_slots
        mask_candidate = part < num_parts
        ids_offsets = part * stride_part_ids_part + row * stride_part_ids_row + slot * stride_part_ids_slot
        ids = tl.load(part_ids_ptr + ids_offsets, mask=mask_candidate, other=NO_ID).to(tl.int32)
        logits_offsets = part * stride_part_logits_part + row * stride_part_logits_row + slot * stride_part_logits_slot
        logits = tl.load(part_logits_ptr + logits_offsets, mask=mask_candidate, other=float("-inf"))
        logits = tl.where(ids < NO_ID, tl.maximum(logits, LOWEST), float("-inf"))
        top, top_ids = _keep_best(top, top_ids, logits, ids, k)

    other, other_ids = tl.trans(top), tl.trans(top_ids)  # [BLOCK_K, 1]
    is_better = tl.where(other == top, other_ids < top_ids, other > top)
    num_better = tl.sum(is_better.to(tl.int32), 0)[None, :]
    mask_k = num_better < k
    tl.store(ids_ptr + row * k + num_better, top_ids.to(tl.int64) + vocab_start, mask=mask_k)
    tl.store(logits_ptr + row * k + num_better, tl.where(top == LOWEST, float("-inf"), top), mask=mask_k)


def merge_top_k(
    ids: Tensor, logits: Tensor, log_sum_exps: Tensor, *, k: int | None = None, vocab_start: int = 0
) -> TopK:
    """One launch, one program a row. Definition and argument shapes: `reference_sampling.merge_top_k`."""
    if ids.ndim != 3 or logits.shape != ids.shape or log_sum_exps.shape != ids.shape[:2]:
        raise ValueError(
            "ids and logits must be [P, N, k] and log_sum_exps [P, N]; "
            f"got {tuple(ids.shape)}, {tuple(logits.shape)} and {tuple(log_sum_exps.shape)}"
        )
    num_parts, num_rows, num_slots = ids.shape
    k = num_slots if k is None else k
    merged = TopK(
        ids=torch.empty(num_rows, k, dtype=torch.int64, device=ids.device),
        logits=torch.empty(num_rows, k, dtype=torch.float32, device=ids.device),
        log_sum_exps=torch.empty(num_rows, dtype=torch.float32, device=ids.device),
    )
    _merge_top_k_kernel[(num_rows,)](
        ids, *ids.stride(),
        logits, *logits.stride(),
        log_sum_exps, *log_sum_exps.stride(),
        *merged,
        num_parts, num_slots, k, vocab_start,
        BLOCK_PARTS=triton.next_power_of_2(num_parts),
        BLOCK_CANDIDATES=min(MAX_CANDIDATES, max(32, triton.next_power_of_2(num_parts * num_slots))),
        BLOCK_K=triton.next_power_of_2(k),
        num_warps=8 if k > 16 else 4,
    )  # fmt: skip
    return merged


def _check(
    hidden: Tensor, weight: Tensor, k: int, bias: Tensor | None, soft_cap: float, num_valid: int, workspace: TopK
) -> None:
    num_vocab_rows, hidden_size = weight.shape
    if hidden.shape[1:] != (hidden_size,) or hidden.dtype not in DTYPES or weight.dtype != hidden.dtype:
        raise ValueError(
            f"hidden must be [N, {hidden_size}], as weight {tuple(weight.shape)}, and both of one dtype, float16, "
            f"bfloat16 or float32; got {tuple(hidden.shape)}, {hidden.dtype} and {weight.dtype}"
        )
    if not 1 <= k <= min(MAX_K, num_valid) or num_valid > num_vocab_rows:
        raise ValueError(
            f"weight has {num_vocab_rows} rows, so num_valid must be 1 to {num_vocab_rows}, and k 1 to {MAX_K} and no "
            f"more than num_valid; got num_valid={num_valid} and k={k}"
        )
    if (bias is not None and bias.shape != (num_vocab_rows,)) or soft_cap < 0:
        got = f"{bias if bias is None else tuple(bias.shape)} and {soft_cap}"
        raise ValueError(f"bias must be [{num_vocab_rows}] and soft_cap 0 (none) or more; got {got}")
    if workspace.ids.shape[1] < hidden.shape[0] or workspace.ids.shape[2] != triton.next_power_of_2(k):
        got = f"{tuple(workspace.ids.shape)} [S, N, k as a power of two]"
        raise ValueError(f"the workspace must be top_k_workspace(num_rows={hidden.shape[0]} or more, k={k}); got {got}")


def lm_head_top_k(
    hidden: Tensor,
    weight: Tensor,
    *,
    k: int,
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
    _check(hidden, weight, k, bias, soft_cap, num_valid, workspace)
    shape = launch_shape(num_rows, k, hidden.dtype)
    num_row_tiles = triton.cdiv(num_rows, shape["BLOCK_ROWS"])
    num_tiles = triton.cdiv(num_valid, shape["BLOCK_VOCAB"])
    tiles_per_split = triton.cdiv(num_tiles, workspace.ids.shape[0])
    num_splits = triton.cdiv(num_tiles, tiles_per_split)  # none is empty
    ids, logits, log_sum_exps = (part[:num_splits, :num_rows] for part in workspace)
    _lm_head_top_k_kernel[(num_row_tiles * num_splits,)](
        hidden, *hidden.stride(),
        weight, *weight.stride(),
        bias, 0 if bias is None else bias.stride(0),
        ids, *ids.stride()[:2],
        logits, *logits.stride()[:2],
        log_sum_exps, *log_sum_exps.stride(),
        num_rows, hidden_size, num_valid, k, scale, soft_cap, num_row_tiles, tiles_per_split,
        BLOCK_K=ids.shape[2], PAD_HIDDEN=hidden_size % shape["BLOCK_HIDDEN"] > 0,
        HAS_BIAS=bias is not None, HAS_SOFT_CAP=soft_cap > 0, **shape,
    )  # fmt: skip
    return merge_top_k(ids, logits, log_sum_exps, k=k, vocab_start=vocab_start)
