"""The k best of what several parts of a vocabulary hold. Definition: `reference.py`.

N rows · P parts
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_CANDIDATES = 4096  # that are merged at a time: all of 256 splits and 16 tokens

NO_ID = tl.constexpr(1 << 30)  # and above: ids that no token has
HIGHEST = tl.constexpr(torch.finfo(torch.float32).max)
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)  # stands for -inf where -inf means none


class TopK(NamedTuple):
    """Tokens from the best down; of equal logits the smallest id is best. A workspace adds splits in front."""

    ids: Tensor  # [N, k] int64
    logits: Tensor  # [N, k] float32
    log_sum_exps: Tensor  # [N] float32


@triton.jit
def keep_best(top, top_ids, logits, ids, k):
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
def empty_lists(NUM_LISTS: tl.constexpr, BLOCK_K: tl.constexpr):
    """Nothing in them; ids differ, so that one slot is replaced at a time."""
    ids = NO_ID + tl.arange(0, BLOCK_K)[None, :] + tl.zeros([NUM_LISTS, BLOCK_K], tl.int32)
    return tl.full([NUM_LISTS, BLOCK_K], float("-inf"), tl.float32), ids


# Nothing that a launch is specialised by depends on the number of rows.
@triton.jit(
    do_not_specialize=[
        "part_ids_ptr", "stride_part_ids_part", "stride_part_ids_row", "part_logits_ptr", "stride_part_logits_part",
        "stride_part_logits_row", "part_log_sum_exps_ptr", "stride_part_log_sum_exps_part",
        "stride_part_log_sum_exps_row", "num_parts", "num_slots", "k", "vocab_start",
    ]
)  # fmt: skip
def merge_top_k_kernel(
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

    top, top_ids = empty_lists(1, BLOCK_K)
    for start in range(0, num_parts * num_slots, BLOCK_CANDIDATES):
        candidate = (start + tl.arange(0, BLOCK_CANDIDATES))[None, :]  # int32: GPUs have no division of 64 bits
        mask_candidate = candidate // num_slots < num_parts
        part, slot = (candidate // num_slots).to(tl.int64), (candidate % num_slots).to(tl.int64)
        ids_offsets = part * stride_part_ids_part + row * stride_part_ids_row + slot * stride_part_ids_slot
        ids = tl.load(part_ids_ptr + ids_offsets, mask=mask_candidate, other=NO_ID).to(tl.int32)
        logits_offsets = part * stride_part_logits_part + row * stride_part_logits_row + slot * stride_part_logits_slot
        logits = tl.load(part_logits_ptr + logits_offsets, mask=mask_candidate, other=float("-inf"))
        logits = tl.where(ids < NO_ID, tl.maximum(logits, LOWEST), float("-inf"))
        top, top_ids = keep_best(top, top_ids, logits, ids, k)

    other, other_ids = tl.trans(top), tl.trans(top_ids)  # [BLOCK_K, 1]
    is_better = tl.where(other == top, other_ids < top_ids, other > top)
    num_better = tl.sum(is_better.to(tl.int32), 0)[None, :]
    mask_k = num_better < k
    tl.store(ids_ptr + row * k + num_better, top_ids.to(tl.int64) + vocab_start, mask=mask_k)
    tl.store(logits_ptr + row * k + num_better, tl.where(top == LOWEST, float("-inf"), top), mask=mask_k)


def merge_top_k(
    ids: Tensor, logits: Tensor, log_sum_exps: Tensor, *, k: int | None = None, vocab_start: int = 0
) -> TopK:
    """One launch, one program a row. Definition and argument shapes: `reference.py`."""
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
    merge_top_k_kernel[(num_rows,)](
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
