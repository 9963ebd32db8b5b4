"""How many tokens a draft gets accepted on known answers of the target, without decoding.

Greedy decoding ends in the target's own answer whatever the draft says, so the answer stands in for the target: one
forward over all anchors tells what a draft of K tokens would be worth at each of them.

N tokens · K draft tokens · R rows · T labelled rows
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vllm_pard.metrics import AcceptanceStats
from vllm_pard.training.cod.rows import Rows

__all__ = ["accepted_tokens", "at_every_anchor", "replay"]


def accepted_tokens(rows: Rows, num_tokens: int, labelled: Tensor, matches: Tensor, num_depths: int) -> Tensor:
    """How many draft tokens would be accepted at each anchor: the matches up to the first miss. int64 [N]

    Args:
        rows: of whole chains, none dropped.
        num_tokens: N.
        labelled: int64 [T], which rows have a label.
        matches: bool [T], whether the draft's token is the label.
        num_depths: K.
    """
    chains = torch.zeros(num_tokens, num_depths, dtype=torch.int64)
    chains[rows.anchors[labelled], rows.depths[labelled]] = matches.long()
    return chains.cumprod(dim=1).sum(dim=1)


def at_every_anchor(accepted: Tensor, run_lengths: Tensor, num_depths: int) -> AcceptanceStats:
    """A draft at each place of an answer: smoother than a replay, for it counts every token. [N], [N]"""
    counted = accepted[run_lengths > 0]  # [A]
    return _stats(counted, num_depths)


def replay(accepted: Tensor, is_trained: Tensor, documents: Tensor, num_depths: int) -> AcceptanceStats:
    """The drafts of greedy speculative decoding, exactly: the target gives an answer's first token alone; after that,
    each step keeps what is accepted and the target's next token. [N], bool [N], [N]
    """
    steps = [step for start, stop in _answers(is_trained, documents) for step in _steps(accepted, start, stop)]
    return _stats(accepted[torch.tensor(steps, dtype=torch.int64)], num_depths)


def _answers(is_trained: Tensor, documents: Tensor) -> Iterator[tuple[int, int]]:
    """The first and the last token of each run of trained tokens in a document."""
    label = torch.where(is_trained, documents, -1)  # one number for each run, as far as neighbours differ
    ends = torch.nonzero(label[1:] != label[:-1])[:, 0].tolist()
    starts = [0, *(end + 1 for end in ends)]
    for start, stop in zip(starts, [*ends, len(label) - 1], strict=True):
        if label[start] >= 0:
            yield start, stop


def _steps(accepted: Tensor, start: int, stop: int) -> Iterator[int]:
    """The anchors at which a step drafts."""
    anchor = start
    while anchor < stop:
        yield anchor
        anchor += int(accepted[anchor]) + 1


def _stats(accepted: Tensor, num_depths: int) -> AcceptanceStats:
    return AcceptanceStats(
        num_drafts=len(accepted),
        num_draft_tokens=len(accepted) * num_depths,
        num_accepted_tokens=int(accepted.sum()),
        accepted_per_position=tuple(int((accepted > depth).sum()) for depth in range(num_depths)),
    )
