"""The launch of `keep_tree_rows`; an engine needs one variant of the kernel."""

from torch import Tensor

from pard_kernels.keep_tree_rows.checks import check_arguments
from pard_kernels.keep_tree_rows.kernel import keep_tree_rows_kernel

BLOCK_ROWS = 128  # most requests have a tree's rows, few a prompt's


def keep_tree_rows(
    *,
    kept_rows: Tensor,
    row_starts: Tensor,
    logit_starts: Tensor,
    request_slots: Tensor,
    accepted_rows: Tensor,
    num_sampled: Tensor,
) -> None:
    """Say which row stands where after the step. Definition and argument shapes: `reference.py`."""
    check_arguments(kept_rows, row_starts, logit_starts, request_slots, accepted_rows, num_sampled)
    keep_tree_rows_kernel[(row_starts.shape[0] - 1,)](
        kept_rows,
        row_starts, logit_starts,
        request_slots,
        accepted_rows, accepted_rows.stride(0), accepted_rows.shape[1],
        num_sampled,
        BLOCK_ROWS=BLOCK_ROWS, num_warps=1,
    )  # fmt: skip
