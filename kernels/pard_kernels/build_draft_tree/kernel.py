"""One launch, one program a request, whose search lies in registers. Definition: `reference.py`."""

import triton
import triton.language as tl

from pard_kernels.build_draft_tree.reference import MAX_TOKEN_ID

TAKEN = tl.constexpr(-(2**31))  # below the key of -inf
NOTHING = tl.constexpr(-1)  # no token
NO_PLACE = tl.constexpr(-2)  # neither a token nor NOTHING
TOKEN_BITS = tl.constexpr(MAX_TOKEN_ID.bit_length())  # of what followed, below the ten of its place
TOKEN_MASK = tl.constexpr(MAX_TOKEN_ID)
PAIR = tl.constexpr(1 << 30)
# Fields of what is known of an open node, from the highest: row of the parent, ancestors in the main chain, depth, rank
# among siblings, the rank that is a sibling already.
ROW, MAIN, DEPTH, RANK = tl.constexpr(24), tl.constexpr(18), tl.constexpr(12), tl.constexpr(6)
FIELD = tl.constexpr(0x3F)
NOT_RANKED = tl.constexpr(0x3E)  # not among its depth's candidates
NO_SIBLINGS = tl.constexpr(0x3F)
SIBLING, CHILD, COPY = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def key_of(logprob):
    """Whole numbers in the order of float32, so that -inf is above what is no longer open; NaN is -inf."""
    bits = tl.where(logprob == logprob, logprob, float("-inf")).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def logprob_of(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def the_one(is_it, values):
    """The value of one lane. A sum of whole numbers is one instruction of a warp, a maximum of floats ten."""
    return tl.sum(tl.where(is_it, values, 0), 0)


@triton.jit
def the_one_of_all(is_it, values):
    return tl.sum(tl.sum(tl.where(is_it, values, 0), 0), 0)


@triton.jit
def what_followed(before, token, older, newer, followers):
    """What came after the newest place of both, or of `token` alone, NOTHING if there is none; and whether of both."""
    found = tl.where(newer == token, tl.where(older == before, followers | PAIR, followers), NOTHING)
    newest = tl.max(found, 0)
    return tl.where(newest < 0, NOTHING, newest & TOKEN_MASK), newest >= PAIR


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
    BLOCK_NODES: tl.constexpr, BLOCK_CANDIDATES: tl.constexpr, BLOCK_HISTORY: tl.constexpr,
):  # fmt: skip
    BITS: tl.constexpr = tl.int32 if BLOCK_NODES <= 32 else tl.int64  # one for each node but the last
    req = tl.program_id(0).to(tl.int64)
    candidate_ids_ptr += req * num_depths * num_candidates
    candidate_logprobs_ptr += req * num_depths * num_candidates
    slot = tl.load(request_slots_ptr + req * has_slots).to(tl.int64)
    slot = tl.where(has_slots != 0, slot, req)

    # The request's newest tokens, a lane for each that another one follows: newer places have higher numbers.
    offs_candidate = tl.arange(0, BLOCK_CANDIDATES)
    has_history = tl.where(slot >= 0, has_history, 0)
    history_ptr += tl.maximum(slot, 0) * history_stride
    length = tl.load(history_lengths_ptr + tl.maximum(slot, 0), mask=has_history > 0, other=0)
    first = tl.maximum(length - BLOCK_HISTORY, 0)
    places = tl.arange(0, BLOCK_HISTORY)
    offs_history = first + places
    mask_history = offs_history < length - 1
    newer = tl.load(history_ptr + offs_history, mask=mask_history, other=NO_PLACE)
    older = tl.load(history_ptr + offs_history - 1, mask=mask_history & (places > 0), other=NO_PLACE)
    following = tl.load(history_ptr + offs_history + 1, mask=mask_history, other=NOTHING)
    is_token = (following >= 0) & (following <= TOKEN_MASK)
    followers = tl.where(is_token, (places << TOKEN_BITS) | following, NOTHING)

    # What is opened when a node is taken has a lane: its next sibling, its first child, what has followed it before. Of
    # equal keys the one that was opened first counts. How long the main chain gets is known at the end only. Until then
    # a row is a place in one of two lists: d > 0 for the main chain's node at depth d, -1 - j for the j-th of the
    # others; 0 is the root's, or of a node that is not taken.
    kind, lane = tl.arange(0, 4)[:, None], tl.arange(0, BLOCK_NODES)[None, :]  # three kinds; sides are powers of two
    order = 4 * lane + kind
    keys = tl.full([4, BLOCK_NODES], TAKEN, tl.int32)
    rows = tl.zeros([4, BLOCK_NODES], tl.int32)
    nodes = tl.zeros([4, BLOCK_NODES], tl.int32)
    other_ancestors = tl.zeros([4, BLOCK_NODES], BITS)  # bit j: the j-th node that is not of the main chain
    siblings_keys = tl.zeros([4, BLOCK_NODES], tl.int32)  # what a sibling's log-probability is added to
    token_ids = tl.zeros([4, BLOCK_NODES], tl.int32)
    parent_ids = tl.zeros([4, BLOCK_NODES], tl.int32)

    # The root is what was taken last.
    token = tl.load(history_ptr + length - 1, mask=length > 0, other=NOTHING)
    before = tl.load(history_ptr + length - 2, mask=length > first + 1, other=NOTHING)
    zero = tl.zeros([], tl.int32)
    key, row, depth = zero, zero, zero  # a key of 0 is that of 0.0
    num_main, num_main_ancestors, ancestors = zero, zero, tl.zeros([], BITS)
    for i in range(num_nodes):
        # Open the first child of what was taken last, and what the history would have follow it.
        has_child = depth < num_depths
        follower, is_pair = what_followed(before, token, older, newer, followers)
        has_follower = has_child & (follower != NOTHING)
        mask_candidate = offs_candidate < tl.where(has_child, num_candidates, 0)
        offs = depth * num_candidates + offs_candidate
        ids = tl.load(candidate_ids_ptr + offs, mask=mask_candidate, other=NOTHING).to(tl.int32)
        logprobs = tl.load(candidate_logprobs_ptr + offs, mask=mask_candidate, other=0.0).to(tl.int32, bitcast=True)
        is_follower = (ids == follower) & mask_candidate & has_follower
        follower_rank = tl.min(tl.where(is_follower, offs_candidate, NOT_RANKED), 0)
        rank = (follower_rank == 0).to(tl.int32)
        rest = tl.where(has_follower, tl.where(is_pair, PAIR_REST, SINGLE_REST), 0.0)
        share = tl.where(is_pair, PAIR_SHARE, SINGLE_SHARE)
        siblings_key = key_of(logprob_of(key) + rest)
        child_logprob = the_one(offs_candidate == rank, logprobs).to(tl.float32, bitcast=True)
        child_key = key_of(logprob_of(siblings_key) + child_logprob)
        child_id = the_one(offs_candidate == rank, ids)
        follower_logprob = the_one(offs_candidate == follower_rank, logprobs).to(tl.float32, bitcast=True)
        is_likely = (follower_rank != NOT_RANKED) & (follower_logprob == follower_logprob)
        of_draft = tl.where(is_likely, tl.exp(follower_logprob), 0.0)
        follower_key = key_of(logprob_of(key) + tl.log(of_draft * (1 - share) + share))

        is_child, is_copy = (lane == i) & (kind == CHILD), (lane == i) & (kind == COPY)
        is_new = is_child | is_copy
        keys = tl.where(is_child & has_child & (rank < num_candidates), child_key, keys)
        keys = tl.where(is_copy & has_follower, follower_key, keys)
        node = (row << ROW) | (num_main_ancestors << MAIN) | ((depth + 1) << DEPTH)
        nodes = tl.where(is_child, node | (rank << RANK) | follower_rank, nodes)
        nodes = tl.where(is_copy, node | (follower_rank << RANK) | NO_SIBLINGS, nodes)
        other_ancestors = tl.where(is_new, ancestors, other_ancestors)
        siblings_keys = tl.where(is_child, siblings_key, siblings_keys)
        token_ids = tl.where(is_new, tl.where(is_copy, follower, child_id), token_ids)
        parent_ids = tl.where(is_new, token, parent_ids)

        # Take the likeliest, and open its next sibling.
        open_keys = tl.where(rows == 0, keys, TAKEN)
        key = tl.max(tl.max(open_keys, 0), 0)
        is_taken = order == tl.min(tl.min(tl.where(open_keys == key, order, 4 * BLOCK_NODES), 0), 0)
        node = the_one_of_all(is_taken, nodes)
        ancestors = the_one_of_all(is_taken, other_ancestors)
        siblings_key = the_one_of_all(is_taken, siblings_keys)
        token = the_one_of_all(is_taken, token_ids)
        before = the_one_of_all(is_taken, parent_ids)

        rank, depth, num_main_ancestors = (node >> RANK) & FIELD, (node >> DEPTH) & FIELD, (node >> MAIN) & FIELD
        is_main = (rank == 0) & (num_main_ancestors == depth - 1)
        num_other = i - num_main
        row = tl.where(is_main, depth, -1 - num_other)
        rows = tl.where(is_taken, row, rows)

        skipped = node & FIELD
        next_rank = rank + 1 + (rank + 1 == skipped).to(tl.int32)
        has_sibling = (next_rank < num_candidates) & (skipped != NO_SIBLINGS)
        offs = (depth - 1) * num_candidates + next_rank
        sibling_logprob = tl.load(candidate_logprobs_ptr + offs, mask=has_sibling, other=0.0)
        sibling_id = tl.load(candidate_ids_ptr + offs, mask=has_sibling, other=0).to(tl.int32)
        is_sibling = (lane == i + 1) & (kind == SIBLING)
        keys = tl.where(is_sibling & has_sibling, key_of(logprob_of(siblings_key) + sibling_logprob), keys)
        nodes = tl.where(is_sibling, node + ((next_rank - rank) << RANK), nodes)
        other_ancestors = tl.where(is_sibling, ancestors, other_ancestors)
        siblings_keys = tl.where(is_sibling, siblings_key, siblings_keys)
        token_ids = tl.where(is_sibling, sibling_id, token_ids)
        parent_ids = tl.where(is_sibling, before, parent_ids)

        # Its own, for its children.
        num_main += is_main.to(tl.int32)
        num_main_ancestors = tl.where(is_main, depth, num_main_ancestors)
        ancestors = tl.where(is_main, ancestors, ancestors | (tl.full([], 1, BITS) << num_other))

    mask_taken = rows != 0
    parents = nodes >> ROW
    rows = tl.where(rows > 0, rows, num_main - rows)
    parents = tl.where(parents >= 0, parents, num_main - parents)
    depths = (nodes >> DEPTH) & FIELD
    one = tl.full([], 1, tl.int64)
    main_ancestors = (one * 2 << ((nodes >> MAIN) & FIELD)) - 1  # the root too
    # In two steps, since 64 would be too far for one.
    ancestors = main_ancestors | (other_ancestors.to(tl.int64) << num_main << 1) | (one << rows)

    offs_node = req * num_nodes + rows - 1
    tl.store(token_ids_ptr + offs_node, token_ids.to(tl.int64), mask=mask_taken)
    tl.store(logprobs_ptr + offs_node, logprob_of(keys), mask=mask_taken)
    root = slot * (num_nodes + 1)
    num_kept = tl.where(slot >= 0, 4 * BLOCK_NODES, 0)  # lanes
    mask_root, mask_taken = order < tl.minimum(num_kept, 1), mask_taken & (order < num_kept)
    tl.store(parents_ptr + root + rows, parents, mask=mask_taken)
    tl.store(depths_ptr + root + rows, depths, mask=mask_taken)
    tl.store(ancestors_ptr + root + rows, ancestors, mask=mask_taken)
    tl.store(parents_ptr + root + order, 0, mask=mask_root)
    tl.store(depths_ptr + root + order, 0, mask=mask_root)
    tl.store(ancestors_ptr + root + order, one, mask=mask_root)
