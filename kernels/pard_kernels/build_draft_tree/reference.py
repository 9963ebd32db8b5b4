"""What the tree of a parallel draft is: the twin that the kernel is tested against.

B requests · K depths of the draft · C candidates of a depth · N nodes of a tree · S slots of requests
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class DraftTree(NamedTuple):
    """A tree of each request. Row 0 is the root, the last token that the request has; rows 1 to N are the nodes.

    The main chain comes first, the likeliest token of each depth as far as it is in the tree, then the others in the
    order in which the search takes them. A parent comes before its children, so a tree cut off after any row is one.
    """

    token_ids: Tensor  # [B, N] int64, of row j + 1 at j
    parents: Tensor  # [B, N + 1] int32, rows; 0 for the root too
    depths: Tensor  # [B, N + 1] int32, 0 for the root
    ancestors: Tensor  # [B, N + 1] int64, bit r for row r that is an ancestor or the row itself; bit 63 is the sign
    logprobs: Tensor  # [B, N] float32, joint, of row j + 1 at j

    @staticmethod
    def empty(num_reqs: int, num_nodes: int, device: torch.device | str) -> DraftTree:
        """Memory for trees of so many nodes."""
        return DraftTree(
            token_ids=torch.empty(num_reqs, num_nodes, dtype=torch.int64, device=device),
            parents=torch.empty(num_reqs, num_nodes + 1, dtype=torch.int32, device=device),
            depths=torch.empty(num_reqs, num_nodes + 1, dtype=torch.int32, device=device),
            ancestors=torch.empty(num_reqs, num_nodes + 1, dtype=torch.int64, device=device),
            logprobs=torch.empty(num_reqs, num_nodes, dtype=torch.float32, device=device),
        )


class History(NamedTuple):
    """What requests have read and written, the newest token last."""

    token_ids: Tensor  # [S, L] int32, rows contiguous
    lengths: Tensor  # [S] int32, none above L


MAX_HISTORY = 1024  # of its newest tokens are looked at
MAX_TOKEN_ID = 2**20 - 1  # of those that a history proposes: four times the largest vocabulary there is
# Of the probability, for what has followed the last two tokens, or else the last one, when they were last there.
PAIR_SHARE, SINGLE_SHARE = 0.3, 0.1


@dataclass(frozen=True, eq=False)
class _Node:
    parent: _Node | None
    depth: int
    token_id: int
    rank: int | None  # among the candidates of its depth; None: it comes from the history alone
    logprob: float  # joint
    is_copy: bool = False  # what has followed before: opens no siblings

    @property
    def is_main(self) -> bool:
        return self.parent is None or (self.rank == 0 and self.parent.is_main)


class _Request:
    """What one request's tree is made of."""

    def __init__(self, ids: list[list[int]], logprobs: list[list[float]], history: list[int]) -> None:
        self.ids, self.logprobs, self.history = ids, logprobs, history  # [K, C], [K, C], [L]
        self._followers: dict[_Node, tuple[int | None, float]] = {}

    def follower(self, node: _Node) -> tuple[int | None, float]:
        """The token that followed the node's and its parent's when they were last there, or the node's; its share."""
        if node not in self._followers:
            self._followers[node] = self._find_follower(node)
        return self._followers[node]

    def _find_follower(self, node: _Node) -> tuple[int | None, float]:
        parent_id = node.parent.token_id if node.parent else self.history[-2] if len(self.history) > 1 else None
        proposed = [i for i in range(len(self.history) - 1) if 0 <= self.history[i + 1] <= MAX_TOKEN_ID]
        places = [i for i in proposed if self.history[i] == node.token_id]
        pairs = [i for i in places if i > 0 and self.history[i - 1] == parent_id]
        if not places:
            return None, 0.0
        return self.history[max(pairs or places) + 1], PAIR_SHARE if pairs else SINGLE_SHARE

    def children(self, node: _Node) -> list[_Node]:
        """The likeliest candidate, and what has followed before."""
        if node.depth == len(self.ids):
            return []
        token_id, share = self.follower(node)
        ids = self.ids[node.depth]
        rank = ids.index(token_id) if token_id in ids else None
        opened = []
        first = self._candidate(node, 0 if rank != 0 else 1)
        if first is not None:
            opened.append(first)
        if token_id is not None:
            of_draft = -math.inf if rank is None else _number(self.logprobs[node.depth][rank])
            mixed = torch.tensor(of_draft, dtype=torch.float32).exp() * (1 - share) + share
            opened.append(
                _Node(node, node.depth + 1, token_id, rank, _added(node.logprob, float(mixed.log())), is_copy=True)
            )
        return opened

    def sibling(self, node: _Node) -> _Node | None:
        """The next likeliest candidate below the same parent, but for the one that was opened with the first."""
        if node.parent is None or node.rank is None or node.is_copy:
            return None
        follower, _ = self.follower(node.parent)
        rank, ids = node.rank + 1, self.ids[node.depth - 1]
        return self._candidate(node.parent, rank + (ids[rank : rank + 1] == [follower]))

    def _candidate(self, parent: _Node, rank: int) -> _Node | None:
        ids, logprobs = self.ids[parent.depth], self.logprobs[parent.depth]
        if rank >= len(ids):
            return None
        _, share = self.follower(parent)
        logprob = _added(_added(parent.logprob, math.log1p(-share)), logprobs[rank])
        return _Node(parent, parent.depth + 1, ids[rank], rank, logprob)


def _added(left: float, right: float) -> float:
    return _number(float(torch.tensor(left, dtype=torch.float32) + torch.tensor(right, dtype=torch.float32)))


def _number(logprob: float) -> float:
    return -math.inf if math.isnan(logprob) else logprob


def build_draft_tree(
    *,
    candidate_ids: Tensor,  # [B, K, C] int64, contiguous
    candidate_logprobs: Tensor,  # [B, K, C] float32, contiguous, not rising along C, none above 0
    num_nodes: int,  # N, 1 to 63, no more than the candidates make
    history: History | None = None,  # of request b in its slot, or in row b
    out: DraftTree | None = None,
    request_slots: Tensor | None = None,  # [>= B] int32 or int64, -1 for a request that keeps no tree
) -> DraftTree:
    """The N likeliest nodes of the tree of all paths through a parallel draft's candidates.

    The draft's distribution of each depth does not depend on the path, so a node's joint log-probability is the sum of
    the candidates' on the way to it. The N highest make a tree, since no node is likelier than its parent, and under
    the draft no tree of N nodes is accepted further (OPT-Tree, arXiv 2406.17276; DDTree, arXiv 2604.12989).

    With a history a node has one child more, or a likelier one: the token that came when the node's and its parent's
    token were last there (or else the node's alone), among the newest MAX_HISTORY tokens, if it is none above
    MAX_TOKEN_ID. It has a share of PAIR_SHARE (or SINGLE_SHARE) of the probability, and the draft's distribution has
    the rest. So text that repeats itself is drafted as far as it does (of n-grams and parallel drafts: DART, arXiv
    2601.19278).

    Best-first search finds them. It starts with the root's children open and takes the likeliest open node, of equal
    ones the one that was opened first. A node that is taken opens its next sibling, then its first child, then what
    has followed before. Sums are float32: the parent's joint log-probability, the rest's, the candidate's. NaN counts
    as -inf; what is -inf is taken last. Candidates that rise along C still give a tree, and no error.

    Writes into `out` (allocated if None) and returns it. With `request_slots` rows of its parents, depths and ancestors
    are slots, [S, N + 1]: request b writes those of its slot, and none if that is -1. The kernel's launcher raises
    ValueError for shapes, dtypes or strides that do not fit, and where fewer than N nodes exist.
    """
    out = out or DraftTree.empty(len(candidate_ids), num_nodes, candidate_ids.device)
    for req, (ids, logprobs) in enumerate(zip(candidate_ids.tolist(), candidate_logprobs.tolist(), strict=True)):
        slot = req if request_slots is None else int(request_slots[req])
        read = []
        if history is not None and slot >= 0:
            read = history.token_ids[slot, : int(history.lengths[slot])][-MAX_HISTORY:].tolist()
        root, taken = best_first(_Request(ids, logprobs, read), num_nodes)
        rows = [root, *sorted(taken, key=lambda node: not node.is_main)]
        for row, node in enumerate(rows):
            if node.parent:
                out.token_ids[req, row - 1] = node.token_id
                out.logprobs[req, row - 1] = node.logprob
            if slot < 0:
                continue
            parent_row = rows.index(node.parent) if node.parent else 0
            out.parents[slot, row] = parent_row
            out.depths[slot, row] = node.depth
            inherited = out.ancestors[slot, parent_row] if node.parent else 0
            out.ancestors[slot, row] = inherited | torch.ones((), dtype=torch.int64, device=out.ancestors.device) << row
    return out


def best_first(request: _Request, num_nodes: int) -> tuple[_Node, list[_Node]]:
    """The root, and the nodes of one request's tree in the order in which they are taken."""
    root = _Node(None, 0, request.history[-1] if request.history else -1, None, 0.0)
    open_nodes = request.children(root)
    taken: list[_Node] = []
    while len(taken) < num_nodes:
        node = max(open_nodes, key=lambda node: node.logprob)  # of equal ones the first
        open_nodes.remove(node)
        taken.append(node)
        sibling = request.sibling(node)
        open_nodes += ([] if sibling is None else [sibling]) + request.children(node)
    return root, taken
