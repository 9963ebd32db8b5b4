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
