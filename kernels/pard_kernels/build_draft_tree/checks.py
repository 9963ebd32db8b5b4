"""What `build_draft_tree` can be asked for: shapes, dtypes and strides, read without a look at the device."""

import torch
from torch import Tensor

from pard_kernels.build_draft_tree.reference import DraftTree, History
from pard_kernels.tree_rows import MAX_TREE_ROWS

MAX_NODES = MAX_TREE_ROWS - 1
MAX_CANDIDATES = 32  # a lane of a warp each


def check_candidates(candidate_ids: Tensor, candidate_logprobs: Tensor) -> None:
    shape = candidate_ids.shape
    if len(shape) != 3 or 0 in shape[1:] or candidate_logprobs.shape != shape:
        raise ValueError(
            "candidate_ids and candidate_logprobs must both be [B, K, C], with a depth and a candidate at least; "
            f"got {tuple(shape)} and {tuple(candidate_logprobs.shape)}"
        )
    if shape[2] > MAX_CANDIDATES:
        raise ValueError(f"a depth can have up to {MAX_CANDIDATES} candidates; got {shape[2]}")
    check_tensor("candidate_ids", candidate_ids, torch.int64)
    check_tensor("candidate_logprobs", candidate_logprobs, torch.float32)


def check_num_nodes(num_nodes: int, num_depths: int, num_candidates: int) -> None:
    """A depth has C times the nodes of the one above."""
    if not 1 <= num_nodes <= MAX_NODES:
        raise ValueError(f"num_nodes must be 1 to {MAX_NODES}, with the root one bit each of 64; got {num_nodes}")
    num_there, num_of_depth = 0, 1
    for _ in range(num_depths):
        num_of_depth *= num_candidates
        num_there += num_of_depth
        if num_there >= num_nodes:
            return
    raise ValueError(
        f"{num_candidates} candidates at each of {num_depths} depths make {num_there} nodes; got "
        f"num_nodes={num_nodes}. Ask for fewer nodes or give more candidates."
    )


def check_out(out: DraftTree, num_reqs: int, num_nodes: int, request_slots: Tensor | None) -> None:
    """What is wanted is what would be allocated, for slots as many of them as there are."""
    num_slots = num_reqs
    if request_slots is not None:
        num_slots = out.parents.shape[0]
        if request_slots.shape[0] < num_reqs or request_slots.stride(0) != 1:
            raise ValueError(
                f"request_slots must be contiguous and have a slot for each of {num_reqs} requests; got "
                f"{tuple(request_slots.shape)} with strides {request_slots.stride()}"
            )
    of_requests = DraftTree.empty(num_reqs, num_nodes, "meta")
    of_slots = DraftTree.empty(num_slots, num_nodes, "meta")
    all_wanted = of_slots._replace(token_ids=of_requests.token_ids, logprobs=of_requests.logprobs)
    for name, tensor, wanted in zip(out._fields, out, all_wanted, strict=True):
        if tensor.shape != wanted.shape:
            raise ValueError(f"{name} of out must be {list(wanted.shape)}; got {tuple(tensor.shape)}")
        check_tensor(f"{name} of out", tensor, wanted.dtype)


def check_history(history: History | None, num_slots: int) -> None:
    """A row for each slot, or each request where there are no slots."""
    if history is None:
        return
    token_ids, lengths = history
    if token_ids.dim() != 2 or token_ids.stride(1) != 1 or token_ids.dtype != torch.int32:
        raise ValueError(
            "token_ids of the history must be int32 [S, L] with contiguous rows; got "
            f"{token_ids.dtype} {tuple(token_ids.shape)} with strides {token_ids.stride()}"
        )
    check_tensor("lengths of the history", lengths, torch.int32)
    if len(token_ids) < num_slots or lengths.shape != token_ids.shape[:1]:
        raise ValueError(
            f"a history must have token_ids and a length for each of {num_slots} slots; got "
            f"{tuple(token_ids.shape)} and {tuple(lengths.shape)}"
        )


def check_tensor(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype or not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous {dtype}; got {tensor.dtype} with strides {tensor.stride()}")
