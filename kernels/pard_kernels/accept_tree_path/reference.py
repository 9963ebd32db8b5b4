"""Which nodes of a tree are accepted: the twin that the kernel is tested against.

B requests · S request slots · N nodes of a tree · R rows of all requests · W most tokens that a request can be given
"""

from itertools import pairwise

from torch import Tensor


def accept_tree_path(
    *,
    target_token_ids: Tensor,  # [R] int64
    draft_token_ids: Tensor,  # [R] int32 or int64
    row_starts: Tensor,  # [B + 1] int32
    parents: Tensor,  # [S, N + 1] int32
    is_chain_only: Tensor,  # [S] bool
    request_slots: Tensor,  # [>= B] int32 or int64, -1 for a request that must not be touched
    token_ids: Tensor,  # [>= B, W] int64, out
    accepted_rows: Tensor,  # [S, >= W] int32, out
    num_sampled: Tensor,  # [>= B] int32, out
) -> None:
    """Descend each request's tree by the tokens that the target gives in its rows (SpecInfer, arXiv 2305.09781).

    Request b has the rows `row_starts[b] : row_starts[b + 1]`: its last token, the root, then nodes of the tree in
    their order, all or the first ones. A row's draft token is what the target was given in it, its target token what
    the target answers: its greedy choice, or a draw from the distribution that it is sampled from. From the root on the
    path goes to the child whose draft token is the target token of this row (the first, should several have it), and
    ends where there is none. The request gets the target tokens along the path: its nodes' own, then the bonus token.

    Greedy tokens are those of plain decoding. Drawn ones have the target's distribution whatever the tree, if it does
    not depend on the draws: each is drawn after exactly the tokens before it, in a row that earlier draws have chosen.

    A row whose parent is not an earlier row is nobody's child, so rows rise along a path and no tree is endless. Nor is
    a row of a request that is chain-only, unless its parent is the row before it: such a request's path is a run of its
    first rows. Rows beyond N + 1 are not looked at. A path of more than W rows is cut there, as if the tree were no
    deeper; it can't be where W > N.

    Writes in place: `token_ids` and, by slot, `accepted_rows` (the row within the request that each token was given
    in: 0, then the accepted nodes) as far as `num_sampled` (accepted nodes + 1) counts, and leaves what lies behind
    alone. A request without rows or slot gets nothing: its `num_sampled` is 0.
    """
    starts, width = row_starts.tolist(), token_ids.shape[1]
    for req, (start, stop) in enumerate(pairwise(starts)):
        slot = int(request_slots[req])
        parent = parents[slot, : stop - start].tolist()
        if is_chain_only[slot]:
            parent = [each if each == row - 1 else -1 for row, each in enumerate(parent)]
        drafts, targets = (ids[start:stop].tolist() for ids in (draft_token_ids, target_token_ids))
        path = [0] if stop > start and slot >= 0 else []
        while path and len(path) < width:
            last = path[-1]
            child = next(
                (j for j in range(last + 1, len(parent)) if (parent[j], drafts[j]) == (last, targets[last])), None
            )
            if child is None:
                break
            path.append(child)
        num_sampled[req] = len(path)
        for depth, row in enumerate(path):
            token_ids[req, depth] = targets[row]
            accepted_rows[slot, depth] = row
