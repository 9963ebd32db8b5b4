"""One launch, one program a request, a lane for each row that a mask has a bit for. Definition: `reference.py`."""

import triton
import triton.language as tl


# Nothing is specialised: the same kernel places rows, puts them back, and places those that are sampled from.
@triton.jit(
    do_not_specialize=[
        "positions_ptr", "row_masks_ptr", "row_starts_ptr", "logit_starts_ptr", "request_slots_ptr", "depths_ptr",
        "stride_depths_slot", "ancestors_ptr", "stride_ancestors_slot", "num_tree_rows", "sign", "writes_masks",
    ]
)  # fmt: skip
def place_tree_rows_kernel(
    positions_ptr, row_masks_ptr,
    row_starts_ptr, logit_starts_ptr,
    request_slots_ptr,
    depths_ptr, stride_depths_slot,
    ancestors_ptr, stride_ancestors_slot,
    num_tree_rows, sign, writes_masks,
    BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    req = tl.program_id(0).to(tl.int64)
    slot = tl.load(request_slots_ptr + req).to(tl.int64)
    start = tl.load(row_starts_ptr + req).to(tl.int64)
    num_rows = (tl.load(row_starts_ptr + req + 1) - start).to(tl.int32)
    num_rows = tl.where(slot >= 0, num_rows, 0)
    is_tree = tl.load(logit_starts_ptr + req + 1) - tl.load(logit_starts_ptr + req) > 1
    num_nodes = tl.where(is_tree, tl.minimum(num_rows, num_tree_rows), 0)

    offs_row = tl.arange(0, BLOCK_ROWS)
    mask_node = offs_row < num_nodes
    depth = tl.load(depths_ptr + slot * stride_depths_slot + offs_row, mask=mask_node, other=0)
    position = tl.load(positions_ptr + start + offs_row, mask=mask_node, other=0)
    tl.store(positions_ptr + start + offs_row, position + sign * (depth - offs_row), mask=mask_node)

    mask_row = offs_row < num_rows * writes_masks
    two = tl.full([], 2, tl.int64)
    causal = (two << offs_row.to(tl.int64)) - 1  # of row 63, 0 - 1: all bits
    ancestors = tl.load(ancestors_ptr + slot * stride_ancestors_slot + offs_row, mask=mask_row & mask_node, other=0)
    tl.store(row_masks_ptr + start + offs_row, tl.where(mask_node, ancestors, causal), mask=mask_row)
