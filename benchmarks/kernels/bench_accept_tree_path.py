"""The path that the target takes through each request's tree, at different depths."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pard_kernels import accept_tree_path, reference

NUM_ROWS, MAX_DEPTH = 32, 15
WRITTEN = ("token_ids", "accepted_rows", "num_sampled")


def inputs(batch_size: int) -> dict[str, Any]:
    """A main chain of 15, then a second child of each of its rows; tokens are rows, and each request leaves the chain
    at another depth, for the second child."""
    chain = torch.arange(NUM_ROWS)
    parents = torch.where(chain <= MAX_DEPTH, chain - 1, chain - MAX_DEPTH - 1).clamp(min=0)
    last = torch.arange(batch_size) % MAX_DEPTH  # row in which a request leaves the chain
    targets = torch.where(chain == last[:, None], chain + MAX_DEPTH + 1, chain + 1)  # [B, rows]
    width = MAX_DEPTH + 2
    return {
        "target_token_ids": targets.flatten(),
        "draft_token_ids": chain.int().repeat(batch_size),
        "row_starts": torch.arange(batch_size + 1, dtype=torch.int32) * NUM_ROWS,
        "parents": parents.int().repeat(batch_size, 1),
        "is_chain_only": torch.zeros(batch_size, dtype=torch.bool),
        "request_slots": torch.randperm(batch_size, generator=torch.Generator().manual_seed(0)).int(),
        "token_ids": torch.zeros(batch_size, width, dtype=torch.int64),
        "accepted_rows": torch.zeros(batch_size, width, dtype=torch.int32),
        "num_sampled": torch.zeros(batch_size, dtype=torch.int32),
    }


@pytest.mark.parametrize("batch_size", [1, 16, 128])
def test_accept_tree_path(batch_size: int, measure: Callable[..., None]) -> None:
    tensors = inputs(batch_size)
    num_bytes = sum(tensors[name].nbytes for name in ("target_token_ids", "draft_token_ids", "parents", *WRITTEN))
    measure(
        accept_tree_path,
        reference.accept_tree_path,
        lambda: inputs(batch_size),
        num_bytes=num_bytes,
        twin_on_cpu=True,
    )
