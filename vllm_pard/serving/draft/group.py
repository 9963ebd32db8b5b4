"""A draft that every tensor-parallel rank runs whole: no communication inside its forward."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm.distributed import parallel_state


def group_of_one() -> Any:
    """A tensor-parallel group that holds this rank alone. Collective: every rank calls it at the same point."""
    world = parallel_state.get_world_group()
    return parallel_state.init_model_parallel_group(
        [[rank] for rank in range(torch.distributed.get_world_size())],
        world.local_rank,
        torch.distributed.get_backend(world.device_group),
        group_name="pard_draft_tp",
    )


def group_of_draft(vllm_config: Any) -> Any | None:
    """A group of one where each of several ranks runs the whole draft; None: the draft's group is the target's."""
    is_whole_on_each_rank = vllm_config.speculative_config.draft_parallel_config.tensor_parallel_size == 1
    has_ranks = vllm_config.parallel_config.tensor_parallel_size > 1
    return group_of_one() if is_whole_on_each_rank and has_ranks else None


@contextmanager
def tensor_parallel_group(group: Any | None) -> Iterator[None]:
    """Let layers that are built or run inside see `group` as their tensor-parallel group; None changes nothing."""
    if group is None:
        yield
        return
    previous = parallel_state._TP
    parallel_state._TP = group
    try:
        yield
    finally:
        parallel_state._TP = previous


def agree(speculator: Any) -> None:
    """Ranks that differed in a draft token would verify different texts, or, in a confidence, different lengths."""
    handed_on = [speculator.draft_tokens]
    if speculator.trees is not None:
        handed_on += speculator.trees.handed_on
    if speculator.acceptance_estimator is not None:
        handed_on.append(speculator.draft_token_confidence_probs)
    for tensor in handed_on:
        parallel_state.get_tp_group().broadcast(tensor)
