"""The tree of a parallel draft's candidates: as many nodes as a target verifies at a time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from pard_kernels import History, build_draft_tree, reference

NUM_DRAFTS, NUM_CANDIDATES = 15, 16
# The interpreter takes 10 ms for each node.
NUM_NODES, BATCH_SIZES = ((15, 31, 63), (1, 16, 128)) if torch.cuda.is_available() else ((15,), (2,))


# Where the history is: vLLM keeps it in pinned memory of the host.
PLACES = ("nowhere", "device", "host") if torch.cuda.is_available() else ("device",)


def inputs(num_nodes: int, batch_size: int) -> dict[str, Any]:
    """Depths that are less sure the deeper they lie, as a draft's are."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch_size, NUM_DRAFTS, 100, generator=generator)
    logits *= torch.linspace(4, 1, NUM_DRAFTS)[:, None]
    best = logits.log_softmax(2).topk(NUM_CANDIDATES)
    return {"candidate_ids": best.indices, "candidate_logprobs": best.values, "num_nodes": num_nodes}


def history(batch_size: int) -> History:
    read = torch.randint(100, (batch_size, 1024), dtype=torch.int32, generator=torch.Generator().manual_seed(1))
    return History(read, torch.full((batch_size,), 1024, dtype=torch.int32))


def placed(history: History, place: str) -> History:
    if not torch.cuda.is_available():
        return history
    token_ids = history.token_ids.pin_memory() if place == "host" else history.token_ids.cuda()
    return History(token_ids, history.lengths.cuda())


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("batch_size", BATCH_SIZES)
@pytest.mark.parametrize("num_nodes", NUM_NODES)
def test_build_draft_tree(num_nodes: int, batch_size: int, place: str, measure: Callable[..., None]) -> None:
    """Its time is that of a chain of dependent choices: bytes say nothing."""
    read = None if place == "nowhere" else history(batch_size)
    measure(
        partial(build_draft_tree, history=read and placed(read, place)),
        partial(reference.build_draft_tree, history=read),
        lambda: inputs(num_nodes, batch_size),
        tolerance=1e-5,  # of logarithms, where the history says something
        twin_on_cpu=True,
    )
