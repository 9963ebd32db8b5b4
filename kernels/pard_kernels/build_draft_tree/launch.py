"""The launch of `build_draft_tree`; an engine needs one variant of the kernel, whatever K and C are."""

import math

from torch import Tensor
from triton import next_power_of_2

from pard_kernels.build_draft_tree.checks import (
    MAX_CANDIDATES,
    MAX_NODES,
    check_candidates,
    check_history,
    check_num_nodes,
    check_out,
)
from pard_kernels.build_draft_tree.kernel import build_draft_tree_kernel
from pard_kernels.build_draft_tree.reference import MAX_HISTORY, PAIR_SHARE, SINGLE_SHARE, DraftTree, History

# Of two sizes, so that few are compiled; the smaller one halves the search's work.
SMALL, LARGE = 32, next_power_of_2(MAX_NODES)


def build_draft_tree(
    *,
    candidate_ids: Tensor,
    candidate_logprobs: Tensor,
    num_nodes: int,
    history: History | None = None,
    out: DraftTree | None = None,
    request_slots: Tensor | None = None,
) -> DraftTree:
    """The likeliest tree of each request, one program each. Definition and argument shapes: `reference.py`."""
    check_candidates(candidate_ids, candidate_logprobs)
    num_reqs, num_depths, num_candidates = candidate_ids.shape
    check_num_nodes(num_nodes, num_depths, num_candidates)
    out = out or DraftTree.empty(num_reqs, num_nodes, candidate_ids.device)
    check_out(out, num_reqs, num_nodes, request_slots)
    check_history(history, len(out.parents))
    # A pointer is a pointer: None would be another variant.
    token_ids, lengths = (out.depths, out.depths) if history is None else history
    build_draft_tree_kernel[(num_reqs,)](
        candidate_ids,
        candidate_logprobs,
        *out,
        candidate_ids if request_slots is None else request_slots,
        token_ids,
        lengths,
        num_depths, num_candidates, num_nodes, int(request_slots is not None), int(history is not None),
        token_ids.stride(0),
        PAIR_SHARE=PAIR_SHARE, PAIR_REST=math.log1p(-PAIR_SHARE),
        SINGLE_SHARE=SINGLE_SHARE, SINGLE_REST=math.log1p(-SINGLE_SHARE),
        BLOCK_NODES=SMALL if num_nodes <= SMALL else LARGE,
        BLOCK_CANDIDATES=MAX_CANDIDATES, BLOCK_HISTORY=MAX_HISTORY,
        num_warps=1,  # what a node is chosen by never leaves its warp
    )  # fmt: skip
    return out
