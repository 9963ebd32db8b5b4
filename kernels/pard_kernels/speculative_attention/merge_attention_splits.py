"""Partial results of attention become one. Definition and argument shapes: `reference.py`."""

import triton
import triton.language as tl
from torch import Tensor

from pard_kernels.speculative_attention.checks import check_workspace
from pard_kernels.speculative_attention.launch_shape import Workspace, power_of_two


@triton.jit(do_not_specialize=["num_partial_rows", "query_start_loc_ptr", "num_reqs", "num_splits"])
def merge_attention_splits_kernel(
    partial_output_ptr,
    log_sum_exp_ptr,
    num_partial_rows,
    query_start_loc_ptr,
    out_ptr,
    stride_out_row,
    stride_out_head,
    num_reqs,
    num_splits,
    HEAD_SIZE: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    if row >= tl.load(query_start_loc_ptr + num_reqs):
        return
    offs_split = tl.arange(0, BLOCK_SPLITS).to(tl.int64)
    offs_dim = tl.arange(0, BLOCK_HEAD)
    mask_split = offs_split < num_splits
    mask_dim = offs_dim < HEAD_SIZE

    # Partial results lie as [num_splits, num_partial_rows, num_heads].
    offs_partial = (offs_split * num_partial_rows + row) * tl.num_programs(1) + head
    log_sums = tl.load(log_sum_exp_ptr + offs_partial, mask=mask_split, other=float("-inf"))
    top = tl.max(log_sums, 0)
    weights = tl.exp2(log_sums - tl.where(top == float("-inf"), 0.0, top))  # [BLOCK_SPLITS]
    # A split that saw nothing has written no output.
    has_output = log_sums > float("-inf")
    partial = tl.load(
        partial_output_ptr + (offs_partial * HEAD_SIZE)[:, None] + offs_dim[None, :],
        mask=has_output[:, None] & mask_dim[None, :],
        other=0.0,
    )  # [BLOCK_SPLITS, BLOCK_HEAD]
    total = tl.sum(weights, 0)
    merged = tl.sum(partial * weights[:, None], 0) / tl.where(total > 0.0, total, 1.0)
    out_offsets = row * stride_out_row + head * stride_out_head + offs_dim
    tl.store(out_ptr + out_offsets, merged.to(out_ptr.dtype.element_ty), mask=mask_dim)


def merge_attention_splits(
    partial_output: Tensor,
    log_sum_exp: Tensor,
    num_splits: int,
    query_start_loc: Tensor,
    out: Tensor,
) -> None:
    """Weigh each split's output by what it saw; one program a row and head. Definition: `reference.py`."""
    num_rows, num_heads, head_size = out.shape
    check_workspace(Workspace(partial_output, log_sum_exp), num_splits, num_rows, num_heads, head_size)
    block_head, block_splits = power_of_two(head_size), power_of_two(num_splits)
    merge_attention_splits_kernel[(num_rows, num_heads)](
        partial_output,
        log_sum_exp,
        partial_output.shape[1],
        query_start_loc,
        out,
        out.stride(0),
        out.stride(1),
        query_start_loc.shape[0] - 1,
        num_splits,
        HEAD_SIZE=head_size,
        BLOCK_HEAD=block_head,
        BLOCK_SPLITS=block_splits,
        num_warps=8 if block_head * block_splits > 64 * 128 else 4,
    )
