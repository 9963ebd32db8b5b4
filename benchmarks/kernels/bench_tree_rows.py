"""Rows of trees put at their depths, with their masks, and rows that are kept."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pard_kernels import keep_tree_rows, place_tree_rows, reference

NUM_ROWS, MAX_DEPTH = 32, 15
BATCH_SIZES = [1, 16, 128]


def starts(batch_size: int) -> dict[str, Any]:
    """Requests of a tree each."""
    row_starts = torch.arange(batch_size + 1, dtype=torch.int32) * NUM_ROWS
    slots = torch.randperm(batch_size, generator=torch.Generator().manual_seed(0))
    return {"row_starts": row_starts, "logit_starts": row_starts, "request_slots": slots}


def placed(batch_size: int) -> dict[str, Any]:
    """A second call starts from other positions, with the same work."""
    depths = torch.arange(NUM_ROWS, dtype=torch.int32) % (MAX_DEPTH + 1)
    return starts(batch_size) | {
        "positions": torch.arange(batch_size * NUM_ROWS),
        "row_masks": torch.zeros(batch_size * NUM_ROWS, dtype=torch.int64),
        "depths": depths.repeat(batch_size, 1),
        "ancestors": torch.arange(batch_size * NUM_ROWS).view(batch_size, NUM_ROWS),
        "sign": 1,
    }


def kept(batch_size: int) -> dict[str, Any]:
    return starts(batch_size) | {
        "kept_rows": torch.zeros(batch_size * NUM_ROWS, dtype=torch.int32),
        "accepted_rows": 2 * torch.arange(MAX_DEPTH + 1, dtype=torch.int32).repeat(batch_size, 1),
        "num_sampled": torch.arange(batch_size, dtype=torch.int32) % MAX_DEPTH + 1,
    }


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_place_tree_rows(batch_size: int, measure: Callable[..., None]) -> None:
    measure(place_tree_rows, reference.place_tree_rows, lambda: placed(batch_size), twin_on_cpu=True)


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_keep_tree_rows(batch_size: int, measure: Callable[..., None]) -> None:
    measure(keep_tree_rows, reference.keep_tree_rows, lambda: kept(batch_size), twin_on_cpu=True)
