"""One launch, one program a request, a lane for each row of its tree. Definition: `reference.py`."""

import triton
import triton.language as tl


# Nothing is specialised: where in a tensor of the whole batch the requests begin changes from step to step.
@triton.jit(
    do_not_specialize=[
        "target_token_ids_ptr", "draft_token_ids_ptr", "row_starts_ptr", "stride_parents_slot", "is_chain_only_ptr",
        "request_slots_ptr", "token_ids_ptr", "stride_token_ids_req", "accepted_rows_ptr", "stride_accepted_rows_slot",
        "num_sampled_ptr", "num_tree_rows", "width",
    ]
)  # fmt: skip
def accept_tree_path_kernel(
    target_token_ids_ptr,
    draft_token_ids_ptr,
    row_starts_ptr,
    parents_ptr, stride_parents_slot,
    is_chain_only_ptr,
    request_slots_ptr,
    token_ids_ptr, stride_token_ids_req,
    accepted_rows_ptr, stride_accepted_rows_slot,
    num_sampled_ptr,
    num_tree_rows, width,
    BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    req = tl.program_id(0).to(tl.int64)
    start = tl.load(row_starts_ptr + req).to(tl.int64)
    num_rows = (tl.load(row_starts_ptr + req + 1).to(tl.int64) - start).to(tl.int32)
    slot = tl.load(request_slots_ptr + req).to(tl.int64)
    num_rows = tl.where(slot >= 0, tl.minimum(num_rows, num_tree_rows), 0)
    target_token_ids_ptr += start

    offs_row = tl.arange(0, BLOCK_ROWS)
    mask_row = offs_row < num_rows
    parent = tl.load(parents_ptr + slot * stride_parents_slot + offs_row, mask=mask_row, other=-1)
    mask_row = mask_row & (parent >= 0) & (parent < offs_row)
    is_chain_only = tl.load(is_chain_only_ptr + tl.maximum(slot, 0))
    # How far above a row its parent may be.
    reach = tl.where(is_chain_only, 1, BLOCK_ROWS)
    mask_row = mask_row & (offs_row - parent <= reach)
    draft = tl.load(draft_token_ids_ptr + start + offs_row, mask=mask_row, other=-1).to(tl.int64)
    wanted = tl.load(target_token_ids_ptr + parent, mask=mask_row, other=-1)
    # Whose parent's token this is not is on no path: from here on a step down is one comparison and one minimum.
    parent = tl.where(mask_row & (draft == wanted), parent, -1)

    path = tl.zeros_like(offs_row)  # a lane for each depth
    depth = 0
    row = tl.where(num_rows > 0, 0, BLOCK_ROWS)
    while (row < BLOCK_ROWS) & (depth < width):
        path = tl.where(offs_row == depth, row, path)
        depth += 1
        row = tl.min(tl.where(parent == row, offs_row, BLOCK_ROWS))

    mask_depth = offs_row < depth
    token = tl.load(target_token_ids_ptr + path, mask=mask_depth, other=0)
    tl.store(token_ids_ptr + req * stride_token_ids_req + offs_row, token, mask=mask_depth)
    tl.store(accepted_rows_ptr + slot * stride_accepted_rows_slot + offs_row, path, mask=mask_depth)
    tl.store(num_sampled_ptr + req, depth)
