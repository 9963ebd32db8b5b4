"""What the tree of a parallel draft is: the twin that the kernel is tested against.

B requests · K depths of the draft · C candidates of a depth · N nodes of a tree
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


@dataclass(frozen=True, eq=False)
class _Node:
    parent: _Node | None
    depth: int
    rank: int  # among the candidates of its depth
    logprob: float  # joint

    @property
    def is_main(self) -> bool:
        return self.parent is None or (self.rank == 0 and self.parent.is_main)


def build_draft_tree(
    *,
    candidate_ids: Tensor,  # [B, K, C] int64, contiguous
    candidate_logprobs: Tensor,  # [B, K, C] float32, contiguous, not rising along C, none above 0
    num_nodes: int,  # N, 1 to 63, no more than the candidates make
    out: DraftTree | None = None,
    request_slots: Tensor | None = None,  # [>= B] int32 or int64, -1 for a request that keeps no tree
) -> DraftTree:
    """The N likeliest nodes of the tree of all paths through a parallel draft's candidates.

    The draft's distribution of each depth does not depend on the path, so a node's joint log-probability is the sum of
    the candidates' on the way to it. The N highest make a tree, since no node is likelier than its parent, and under
    the draft no tree of N nodes is accepted further (OPT-Tree, arXiv 2406.17276; DDTree, arXiv 2604.12989).

    Best-first search finds them. It starts with the root's first child open and takes the likeliest open node, of
    equal ones the one that was opened first. A node that is taken opens its next sibling, then its first child. Sums
    are float32, the parent's joint log-probability plus the candidate's. NaN counts as -inf; what is -inf is taken
    last. Candidates that rise along C still give a tree, and no error.

    Writes into `out` (allocated if None) and returns it. With `request_slots` rows of its parents, depths and ancestors
    are slots, [S, N + 1]: request b writes those of its slot, and none if that is -1. The kernel's launcher raises
    ValueError for shapes, dtypes or strides that do not fit, and where fewer than N nodes exist.
    """
    out = out or DraftTree.empty(len(candidate_ids), num_nodes, candidate_ids.device)
    for req, logprobs in enumerate(candidate_logprobs.cpu()):
        slot = req if request_slots is None else int(request_slots[req])
        root, taken = best_first(logprobs, num_nodes)
        rows = [root, *sorted(taken, key=lambda node: not node.is_main)]
        for row, node in enumerate(rows):
            if node.parent:
                out.token_ids[req, row - 1] = candidate_ids[req, node.depth - 1, node.rank]
                out.logprobs[req, row - 1] = node.logprob
            if slot < 0:
                continue
            parent_row = rows.index(node.parent) if node.parent else 0
            out.parents[slot, row] = parent_row
            out.depths[slot, row] = node.depth
            inherited = out.ancestors[slot, parent_row] if node.parent else 0
            out.ancestors[slot, row] = inherited | torch.ones((), dtype=torch.int64, device=out.ancestors.device) << row
    return out


def best_first(logprobs: Tensor, num_nodes: int) -> tuple[_Node, list[_Node]]:
    """The root, and the nodes of one request's tree in the order in which they are taken. logprobs: [K, C]"""
    num_depths, num_candidates = logprobs.shape
    root = _Node(None, 0, 0, 0.0)

    def opened(parent: _Node, rank: int) -> _Node:
        joint = float(torch.tensor(parent.logprob) + logprobs[parent.depth, rank])
        return _Node(parent, parent.depth + 1, rank, -math.inf if math.isnan(joint) else joint)

    open_nodes = [opened(root, 0)]
    taken: list[_Node] = []
    while len(taken) < num_nodes:
        node = max(open_nodes, key=lambda node: node.logprob)  # of equal ones the first
        open_nodes.remove(node)
        taken.append(node)
        if node.rank + 1 < num_candidates:
            open_nodes.append(opened(node.parent or root, node.rank + 1))
        if node.depth < num_depths:
            open_nodes.append(opened(node, 0))
    return root, taken
