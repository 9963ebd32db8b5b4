"""The launch of `place_tree_rows`; an engine needs one variant of the kernel."""

from torch import Tensor

from pard_kernels.place_tree_rows.checks import check_arguments
from pard_kernels.place_tree_rows.kernel import place_tree_rows_kernel
from pard_kernels.tree_rows import MAX_TREE_ROWS


def place_tree_rows(
    *,
    positions: Tensor,
    row_masks: Tensor | None,
    row_starts: Tensor,
    logit_starts: Tensor,
    request_slots: Tensor,
    depths: Tensor,
    ancestors: Tensor,
    sign: int,
) -> None:
    """Move tree rows to their depths, or back. Definition and argument shapes: `reference.py`."""
    check_arguments(positions, row_masks, row_starts, logit_starts, request_slots, depths, ancestors, sign)
    place_tree_rows_kernel[(row_starts.shape[0] - 1,)](
        # Nothing is written where nobody asks, but a pointer is a pointer: None would be another variant.
        positions, positions if row_masks is None else row_masks,
        row_starts, logit_starts,
        request_slots,
        depths, depths.stride(0),
        ancestors, ancestors.stride(0),
        depths.shape[1], sign, int(row_masks is not None),
        BLOCK_ROWS=MAX_TREE_ROWS, num_warps=1,
    )  # fmt: skip
