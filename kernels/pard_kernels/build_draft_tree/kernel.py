"""One launch, one program a request, whose search lies in registers. Definition: `reference.py`."""

import triton
import triton.language as tl

TAKEN = tl.constexpr(-(2**31))  # below the key of -inf
NOT_RANKED = tl.constexpr(255)  # rank of a token that is not among its depth's candidates
NOTHING = tl.constexpr(-1)  # no token


@triton.jit
def key_of(logprob):
    """Whole numbers in the order of float32, so that -inf is above what is no longer open; NaN is -inf."""
    bits = tl.where(logprob == logprob, logprob, float("-inf")).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def logprob_of(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def what_followed(before, token, older, newer, following, BLOCK_HISTORY: tl.constexpr):
    """What came after the newest place of both, or of `token` alone, NOTHING if there is none; and whether of both."""
    places = tl.arange(0, BLOCK_HISTORY) + tl.where(older == before, BLOCK_HISTORY, 0)
    places = tl.where(newer == token, places, -1)
    newest = tl.max(places, 0)
    follower = tl.sum(tl.where((places == newest) & (newest >= 0), following + 1, 0), 0) - 1
    return follower, newest >= BLOCK_HISTORY


# A launch is specialised by nothing: N and K may change with the number of requests, and tensors are parts of larger
# ones.
@triton.jit(
    do_not_specialize=[
        "candidate_ids_ptr", "candidate_logprobs_ptr", "token_ids_ptr", "parents_ptr", "depths_ptr", "ancestors_ptr",
        "logprobs_ptr", "request_slots_ptr", "history_ptr", "history_lengths_ptr", "num_depths", "num_candidates",
        "num_nodes", "has_slots", "has_history", "history_stride",
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
    history_ptr,
    history_lengths_ptr,
    num_depths, num_candidates, num_nodes, has_slots, has_history, history_stride,
    PAIR_SHARE: tl.constexpr, PAIR_REST: tl.constexpr, SINGLE_SHARE: tl.constexpr, SINGLE_REST: tl.constexpr,
    BLOCK_OPENED: tl.constexpr, BLOCK_CANDIDATES: tl.constexpr, BLOCK_HISTORY: tl.constexpr,
):  # fmt: skip
    req = tl.program_id(0).to(tl.int64)
    candidate_ids_ptr += req * num_depths * num_candidates
    candidate_logprobs_ptr += req * num_depths * num_candidates
    one = tl.full([], 1, tl.int64)
    slot = tl.load(request_slots_ptr + req * has_slots).to(tl.int64)
    slot = tl.where(has_slots != 0, slot, req)

    # The request's newest tokens, a lane for each that another one follows.
    offs_candidate = tl.arange(0, BLOCK_CANDIDATES)
    has_history = tl.where(slot >= 0, has_history, 0)
    history_ptr += tl.maximum(slot, 0) * history_stride
    length = tl.load(history_lengths_ptr + tl.maximum(slot, 0), mask=has_history > 0, other=0)
    first = tl.maximum(length - BLOCK_HISTORY, 0)
    offs_history = first + tl.arange(0, BLOCK_HISTORY)
    mask_history = offs_history < length - 1
    newer = tl.load(history_ptr + offs_history, mask=mask_history, other=NOTHING)
    following = tl.load(history_ptr + offs_history + 1, mask=mask_history, other=NOTHING)
    mask_older = mask_history & (offs_history > first)
    older = tl.load(history_ptr + offs_history - 1, mask=mask_older, other=NOTHING)

    # A lane for each node, in the order of opening: of equal keys the leftmost is the one that was opened first. How
    # long the main chain gets is known at the end only. Until then a row is a place in one of two lists: d > 0 for the
    # main chain's node at depth d, -1 - j for the j-th of the others; 0 is the root's, or of a node that is not taken.
    offs_opened = tl.arange(0, BLOCK_OPENED)
    keys = tl.full([BLOCK_OPENED], TAKEN, tl.int32)
    rows = tl.zeros([BLOCK_OPENED], tl.int32)
    # Bytes of a lane, from the highest: row of the parent, ancestors in the main chain, depth, rank among siblings.
    places = tl.zeros([BLOCK_OPENED], tl.int32)
    other_ancestors = tl.zeros([BLOCK_OPENED], tl.int64)  # bit j: the j-th node that is not of the main chain
    siblings_keys = tl.zeros([BLOCK_OPENED], tl.int32)  # what a sibling's log-probability is added to
    skipped = tl.zeros([BLOCK_OPENED], tl.int32)  # the rank that is a sibling already; NOTHING: it opens no siblings
    token_ids = tl.zeros([BLOCK_OPENED], tl.int32)
    parent_ids = tl.zeros([BLOCK_OPENED], tl.int32)

    # The root is what was taken last.
    token = tl.load(history_ptr + length - 1, mask=length > 0, other=NOTHING)
    before = tl.load(history_ptr + length - 2, mask=length > first + 1, other=NOTHING)
    zero = tl.zeros([], tl.int32)
    key, row, depth = zero, zero, zero  # a key of 0 is that of 0.0
    num_main, num_main_ancestors, ancestors = zero, zero, tl.zeros([], tl.int64)
    for i in range(num_nodes):
        # Open the first child of what was taken last, and what the history would have follow it.
        has_child = depth < num_depths
        follower, is_pair = what_followed(before, token, older, newer, following, BLOCK_HISTORY)
        has_follower = has_child & (follower != NOTHING)
        mask_candidate = offs_candidate < tl.where(has_child, num_candidates, 0)
        offs = depth * num_candidates + offs_candidate
        ids = tl.load(candidate_ids_ptr + offs, mask=mask_candidate, other=NOTHING).to(tl.int32)
        logprobs = tl.load(candidate_logprobs_ptr + offs, mask=mask_candidate, other=float("-inf"))
        logprobs = tl.where(logprobs == logprobs, logprobs, float("-inf"))
        is_follower = (ids == follower) & mask_candidate & has_follower
        follower_rank = tl.min(tl.where(is_follower, offs_candidate, NOT_RANKED), 0)
        rank = (follower_rank == 0).to(tl.int32)
        rest = tl.where(has_follower, tl.where(is_pair, PAIR_REST, SINGLE_REST), 0.0)
        share = tl.where(is_pair, PAIR_SHARE, SINGLE_SHARE)
        siblings_key = key_of(logprob_of(key) + rest)
        child_logprob = tl.max(tl.where(offs_candidate == rank, logprobs, float("-inf")), 0)
        child_key = key_of(logprob_of(siblings_key) + child_logprob)
        follower_logprob = tl.max(tl.where(is_follower, logprobs, float("-inf")), 0)
        follower_key = key_of(logprob_of(key) + tl.log(tl.exp(follower_logprob) * (1 - share) + share))

        is_child, is_copy = offs_opened == 3 * i, offs_opened == 3 * i + 1
        is_new = is_child | is_copy
        keys = tl.where(is_child & has_child & (rank < num_candidates), child_key, keys)
        keys = tl.where(is_copy & has_follower, follower_key, keys)
        place = (row << 24) | (num_main_ancestors << 16) | ((depth + 1) << 8)
        places = tl.where(is_new, place + tl.where(is_copy, follower_rank, rank), places)
        other_ancestors = tl.where(is_new, ancestors, other_ancestors)
        siblings_keys = tl.where(is_new, siblings_key, siblings_keys)
        skipped = tl.where(is_new, tl.where(is_copy, NOTHING, follower_rank), skipped)
        child_id = tl.sum(tl.where(offs_candidate == rank, ids, 0), 0)
        token_ids = tl.where(is_new, tl.where(is_copy, follower, child_id), token_ids)
        parent_ids = tl.where(is_new, token, parent_ids)

        # Take the likeliest, and open its next sibling.
        open_keys = tl.where(rows == 0, keys, TAKEN)
        key = tl.max(open_keys, 0)
        is_taken = offs_opened == tl.min(tl.where(open_keys == key, offs_opened, BLOCK_OPENED), 0)
        place = tl.sum(tl.where(is_taken, places, 0), 0)
        ancestors = tl.sum(tl.where(is_taken, other_ancestors, 0), 0)
        siblings_key = tl.sum(tl.where(is_taken, siblings_keys, 0), 0)
        skip = tl.sum(tl.where(is_taken, skipped, 0), 0)
        token = tl.sum(tl.where(is_taken, token_ids, 0), 0)
        before = tl.sum(tl.where(is_taken, parent_ids, 0), 0)

        rank, depth, num_main_ancestors = place & 0xFF, (place >> 8) & 0xFF, (place >> 16) & 0xFF
        is_main = (rank == 0) & (num_main_ancestors == depth - 1)
        num_other = i - num_main
        row = tl.where(is_main, depth, -1 - num_other)
        rows = tl.where(is_taken, row, rows)

        next_rank = rank + 1 + (rank + 1 == skip).to(tl.int32)
        is_sibling, has_sibling = offs_opened == 3 * i + 2, (next_rank < num_candidates) & (skip != NOTHING)
        offs = (depth - 1) * num_candidates + next_rank
        sibling_logprob = tl.load(candidate_logprobs_ptr + offs, mask=has_sibling, other=0.0)
        sibling_id = tl.load(candidate_ids_ptr + offs, mask=has_sibling, other=0).to(tl.int32)
        keys = tl.where(is_sibling & has_sibling, key_of(logprob_of(siblings_key) + sibling_logprob), keys)
        places = tl.where(is_sibling, place - rank + next_rank, places)
        other_ancestors = tl.where(is_sibling, ancestors, other_ancestors)
        siblings_keys = tl.where(is_sibling, siblings_key, siblings_keys)
        skipped = tl.where(is_sibling, skip, skipped)
        token_ids = tl.where(is_sibling, sibling_id, token_ids)
        parent_ids = tl.where(is_sibling, before, parent_ids)

        # Its own, for its children.
        num_main += is_main.to(tl.int32)
        num_main_ancestors = tl.where(is_main, depth, num_main_ancestors)
        ancestors = tl.where(is_main, ancestors, ancestors | (one << num_other))

    mask_taken = rows != 0
    parents = places >> 24
    rows = tl.where(rows > 0, rows, num_main - rows)
    parents = tl.where(parents >= 0, parents, num_main - parents)
    depths = (places >> 8) & 0xFF
    main_ancestors = (one * 2 << ((places >> 16) & 0xFF)) - 1  # the root too
    # In two steps, since 64 would be too far for one.
    ancestors = main_ancestors | (other_ancestors << num_main << 1) | (one << rows)

    offs_node = req * num_nodes + rows - 1
    tl.store(token_ids_ptr + offs_node, token_ids.to(tl.int64), mask=mask_taken)
    tl.store(logprobs_ptr + offs_node, logprob_of(keys), mask=mask_taken)
    root = slot * (num_nodes + 1)
    num_kept = tl.where(slot >= 0, BLOCK_OPENED, 0)  # lanes
    mask_root, mask_taken = offs_opened < tl.minimum(num_kept, 1), mask_taken & (offs_opened < num_kept)
    tl.store(parents_ptr + root + rows, parents, mask=mask_taken)
    tl.store(depths_ptr + root + rows, depths, mask=mask_taken)
    tl.store(ancestors_ptr + root + rows, ancestors, mask=mask_taken)
    tl.store(parents_ptr + root + offs_opened, 0, mask=mask_root)
    tl.store(depths_ptr + root + offs_opened, 0, mask=mask_root)
    tl.store(ancestors_ptr + root + offs_opened, one, mask=mask_root)
