"""One launch, one program a request, which walks through its rows. Definition: `reference.py`."""

import triton
import triton.language as tl


# Nothing is specialised: where in a tensor of the whole batch the requests begin changes from step to step.
@triton.jit(
    do_not_specialize=[
        "kept_rows_ptr", "row_starts_ptr", "logit_starts_ptr", "request_slots_ptr", "accepted_rows_ptr",
        "stride_accepted_rows_slot", "width", "num_sampled_ptr",
    ]
)  # fmt: skip
def keep_tree_rows_kernel(
    kept_rows_ptr,
    row_starts_ptr, logit_starts_ptr,
    request_slots_ptr,
    accepted_rows_ptr, stride_accepted_rows_slot, width,
    num_sampled_ptr,
    BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    req = tl.program_id(0).to(tl.int64)
    slot = tl.load(request_slots_ptr + req).to(tl.int64)
    start = tl.load(row_starts_ptr + req)
    num_rows = tl.load(row_starts_ptr + req + 1) - start
    is_tree = tl.load(logit_starts_ptr + req + 1) - tl.load(logit_starts_ptr + req) > 1
    num_kept = tl.where(is_tree & (slot >= 0), tl.minimum(tl.load(num_sampled_ptr + req), width), 0)
    for i in range(0, num_rows, BLOCK_ROWS):
        offs_row = i + tl.arange(0, BLOCK_ROWS)
        mask_kept = (offs_row < num_kept) & (offs_row < num_rows)
        accepted = tl.load(accepted_rows_ptr + slot * stride_accepted_rows_slot + offs_row, mask=mask_kept, other=0)
        row = start + tl.where(mask_kept, accepted, offs_row)
        tl.store(kept_rows_ptr + start + offs_row, row, mask=offs_row < num_rows)
