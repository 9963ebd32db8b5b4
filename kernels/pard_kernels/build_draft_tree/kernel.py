"""One launch, one program a request, whose search lies in registers. Definition: `reference.py`."""

import triton
import triton.language as tl

TAKEN = tl.constexpr(-(2**31))  # below the key of -inf


@triton.jit
def key_of(logprob):
    """Whole numbers in the order of float32, so that -inf is above what is no longer open; NaN is -inf."""
    bits = tl.where(logprob == logprob, logprob, float("-inf")).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def logprob_of(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


# A launch is specialised by nothing: N and K may change with the number of requests, and tensors are parts of larger
# ones.
@triton.jit(
    do_not_specialize=[
        "candidate_ids_ptr", "candidate_logprobs_ptr", "token_ids_ptr", "parents_ptr", "depths_ptr", "ancestors_ptr",
        "logprobs_ptr", "request_slots_ptr", "num_depths", "num_candidates", "num_nodes", "has_slots",
    ]
)  # fmt: skip
def build_draft_tree_kernel(
    candidate_ids_ptr,
    candidate_logprobs_ptr,
    token_ids_ptr,
    parents_ptr,
    depths_ptr,
    ancestors_ptr,
    logprobs_ptr,
    request_slots_ptr,
    num_depths, num_candidates, num_nodes, has_slots,
    BLOCK_OPENED: tl.constexpr,
):  # fmt: skip
    req = tl.program_id(0).to(tl.int64)
    candidate_ids_ptr += req * num_depths * num_candidates
    candidate_logprobs_ptr += req * num_depths * num_candidates
    one = tl.full([], 1, tl.int64)

    # A lane for each node, in the order of opening: of equal keys the leftmost is the one that was opened first. How
    # long the main chain gets is known at the end only. Until then a row is a place in one of two lists: d > 0 for the
    # main chain's node at depth d, -1 - j for the j-th of the others; 0 is the root's, or of a node that is not taken.
    offs_opened = tl.arange(0, BLOCK_OPENED)
    keys = tl.where(offs_opened == 0, key_of(0.0 + tl.load(candidate_logprobs_ptr)), TAKEN)
    rows = tl.zeros([BLOCK_OPENED], tl.int32)
    # Bytes of a lane, from the highest: row of the parent, ancestors in the main chain, depth, rank among siblings.
    places = tl.where(offs_opened == 0, 1 << 8, 0)
    other_ancestors = tl.zeros([BLOCK_OPENED], tl.int64)  # bit j: the j-th node that is not of the main chain
    parent_keys = tl.zeros([BLOCK_OPENED], tl.int32)  # the root's is that of 0.0, 0
    num_main = 0
    for i in range(num_nodes):
        open_keys = tl.where(rows == 0, keys, TAKEN)
        key = tl.max(open_keys, 0)
        is_taken = offs_opened == tl.min(tl.where(open_keys == key, offs_opened, BLOCK_OPENED), 0)
        place = tl.sum(tl.where(is_taken, places, 0), 0)
        ancestors = tl.sum(tl.where(is_taken, other_ancestors, 0), 0)
        parent_key = tl.sum(tl.where(is_taken, parent_keys, 0), 0)

        rank, depth, num_main_ancestors = place & 0xFF, (place >> 8) & 0xFF, (place >> 16) & 0xFF
        is_main = (rank == 0) & (num_main_ancestors == depth - 1)
        num_other = i - num_main
        row = tl.where(is_main, depth, -1 - num_other)
        rows = tl.where(is_taken, row, rows)
        num_main += is_main.to(tl.int32)

        is_sibling, has_sibling = offs_opened == 2 * i + 1, rank + 1 < num_candidates
        candidate_ptr = candidate_logprobs_ptr + (depth - 1) * num_candidates + rank + 1
        sibling_key = key_of(logprob_of(parent_key) + tl.load(candidate_ptr, mask=has_sibling, other=0.0))
        keys = tl.where(is_sibling & has_sibling, sibling_key, keys)
        places = tl.where(is_sibling, place + 1, places)
        other_ancestors = tl.where(is_sibling, ancestors, other_ancestors)
        parent_keys = tl.where(is_sibling, parent_key, parent_keys)

        is_child, has_child = offs_opened == 2 * i + 2, depth < num_depths
        candidate_ptr = candidate_logprobs_ptr + depth * num_candidates
        child_key = key_of(logprob_of(key) + tl.load(candidate_ptr, mask=has_child, other=0.0))
        keys = tl.where(is_child & has_child, child_key, keys)
        num_main_ancestors = tl.where(is_main, depth, num_main_ancestors)
        places = tl.where(is_child, (row << 24) | (num_main_ancestors << 16) | ((depth + 1) << 8), places)
        ancestors = tl.where(is_main, ancestors, ancestors | (one << num_other))
        other_ancestors = tl.where(is_child, ancestors, other_ancestors)
        parent_keys = tl.where(is_child, key, parent_keys)

    mask_taken = rows != 0
    parents = places >> 24
    rows = tl.where(rows > 0, rows, num_main - rows)
    parents = tl.where(parents >= 0, parents, num_main - parents)
    depths = (places >> 8) & 0xFF
    main_ancestors = (one * 2 << ((places >> 16) & 0xFF)) - 1  # the root too
    # In two steps, since 64 would be too far for one.
    ancestors = main_ancestors | (other_ancestors << num_main << 1) | (one << rows)
    offs_candidate = (depths - 1) * num_candidates + (places & 0xFF)
    token_ids = tl.load(candidate_ids_ptr + offs_candidate, mask=mask_taken, other=0)

    offs_node = req * num_nodes + rows - 1
    tl.store(token_ids_ptr + offs_node, token_ids, mask=mask_taken)
    tl.store(logprobs_ptr + offs_node, logprob_of(keys), mask=mask_taken)
    slot = tl.load(request_slots_ptr + req * has_slots).to(tl.int64)
    slot = tl.where(has_slots != 0, slot, req)
    root = slot * (num_nodes + 1)
    num_kept = tl.where(slot >= 0, BLOCK_OPENED, 0)  # lanes
    mask_root, mask_taken = offs_opened < tl.minimum(num_kept, 1), mask_taken & (offs_opened < num_kept)
    tl.store(parents_ptr + root + rows, parents, mask=mask_taken)
    tl.store(depths_ptr + root + rows, depths, mask=mask_taken)
    tl.store(ancestors_ptr + root + rows, ancestors, mask=mask_taken)
    tl.store(parents_ptr + root + offs_opened, 0, mask=mask_root)
    tl.store(depths_ptr + root + offs_opened, 0, mask=mask_root)
    tl.store(ancestors_ptr + root + offs_opened, one, mask=mask_root)
