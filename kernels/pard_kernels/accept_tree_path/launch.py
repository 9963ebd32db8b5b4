"""The launch of `accept_tree_path`; an engine needs one variant of the kernel."""

from torch import Tensor

from pard_kernels.accept_tree_path.checks import check_arguments
from pard_kernels.accept_tree_path.kernel import accept_tree_path_kernel
from pard_kernels.tree_rows import MAX_TREE_ROWS


def accept_tree_path(
    *,
    target_token_ids: Tensor,
    draft_token_ids: Tensor,
    row_starts: Tensor,
    parents: Tensor,
    is_chain_only: Tensor,
    request_slots: Tensor,
    token_ids: Tensor,
    accepted_rows: Tensor,
    num_sampled: Tensor,
) -> None:
    """Descend each request's tree by the target's tokens. Definition and argument shapes: `reference.py`."""
    check_arguments(
        target_token_ids, draft_token_ids, row_starts, parents, is_chain_only, request_slots, token_ids, accepted_rows,
        num_sampled,
    )  # fmt: skip
    accept_tree_path_kernel[(row_starts.shape[0] - 1,)](
        target_token_ids,
        draft_token_ids,
        row_starts,
        parents, parents.stride(0),
        is_chain_only,
        request_slots,
        token_ids, token_ids.stride(0),
        accepted_rows, accepted_rows.stride(0),
        num_sampled,
        parents.shape[1], token_ids.shape[1],
        BLOCK_ROWS=MAX_TREE_ROWS, num_warps=1,
    )  # fmt: skip
