"""The launch of `build_draft_tree`; an engine needs one variant of the kernel, whatever K, C and N are."""

from torch import Tensor
from triton import next_power_of_2

from pard_kernels.build_draft_tree.checks import MAX_NODES, check_candidates, check_num_nodes, check_out
from pard_kernels.build_draft_tree.kernel import build_draft_tree_kernel
from pard_kernels.build_draft_tree.reference import DraftTree

# The root's first child, then two nodes for each that is taken. One size for all trees: four lanes a thread cost less
# than a compilation.
BLOCK_OPENED = next_power_of_2(1 + 2 * MAX_NODES)


def build_draft_tree(
    *,
    candidate_ids: Tensor,
    candidate_logprobs: Tensor,
    num_nodes: int,
    out: DraftTree | None = None,
    request_slots: Tensor | None = None,
) -> DraftTree:
    """The likeliest tree of each request, one program each. Definition and argument shapes: `reference.py`."""
    check_candidates(candidate_ids, candidate_logprobs)
    num_reqs, num_depths, num_candidates = candidate_ids.shape
    check_num_nodes(num_nodes, num_depths, num_candidates)
    out = out or DraftTree.empty(num_reqs, num_nodes, candidate_ids.device)
    check_out(out, num_reqs, num_nodes, request_slots)
    build_draft_tree_kernel[(num_reqs,)](
        candidate_ids,
        candidate_logprobs,
        *out,
        # A pointer is a pointer: None would be another variant.
        candidate_ids if request_slots is None else request_slots,
        num_depths, num_candidates, num_nodes, int(request_slots is not None),
        BLOCK_OPENED=BLOCK_OPENED,
        num_warps=1,  # what a node is chosen by never leaves its warp
    )  # fmt: skip
    return out
