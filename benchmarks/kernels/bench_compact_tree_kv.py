"""Accepted nodes' keys and values, moved in all layers of a model: nothing moves, a few rows, every row of a path."""

from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any

import pytest
import torch
from pard_kernels import CacheLayout, compact_tree_kv, reference
from torch import Tensor

HAS_GPU = torch.cuda.is_available()
# Llama-3.1-8B; without a GPU the interpreter only checks, on sizes it can take.
NUM_LAYERS, NUM_HEADS, HEAD_SIZE = (32, 8, 128) if HAS_GPU else (2, 2, 16)
BATCH_SIZES = (1, 16, 64) if HAS_GPU else (4,)
BLOCK_SIZE, BLOCKS_PER_REQUEST, FIRST_POSITION = 16, 3, 5
PATHS = {
    "main chain": [0, 1, 2, 3, 4, 5],
    "two of five move": [0, 1, 2, 3, 17, 25],
    "ten of ten move": [0, *range(16, 26)],
}


def inputs(batch_size: int, path: list[int]) -> dict[str, Any]:
    """Requests that have all accepted the same path. A second call copies as much as the first."""
    generator = torch.Generator().manual_seed(0)
    num_blocks = 1 + batch_size * BLOCKS_PER_REQUEST
    shape = (NUM_LAYERS, 2, num_blocks, BLOCK_SIZE, NUM_HEADS, HEAD_SIZE)
    # In place of bfloat16, which holds NaNs: bytes are copied. Hundreds of MB are drawn too slowly.
    drawn = torch.randint(-(2**15), 2**15, (65521,), dtype=torch.int16, generator=generator)
    return {
        "caches": drawn.repeat(1 + prod(shape) // len(drawn))[: prod(shape)].view(shape),
        "block_table": 1 + torch.randperm(num_blocks - 1, generator=generator).view(batch_size, -1).int(),
        "block_size": BLOCK_SIZE,
        "request_slots": torch.arange(batch_size),
        "num_computed": FIRST_POSITION + len(path) + torch.arange(batch_size, dtype=torch.int32) % BLOCK_SIZE,
        "accepted_rows": torch.tensor([path], dtype=torch.int32).repeat(batch_size, 1),
        "num_sampled": torch.full((batch_size,), len(path), dtype=torch.int32),
    }


@cache
def addresses(first: int, stride: int, device: torch.device) -> Tensor:
    """Of all layers, which an engine computes once."""
    return torch.arange(NUM_LAYERS, device=device) * stride + first


def compact(*, caches: Tensor, **others: Any) -> None:
    compact_tree_kv(
        cache_addresses=addresses(caches.data_ptr(), caches.stride(0) * caches.itemsize, caches.device),
        layout=CacheLayout.of(caches[0]),
        **others,
    )


def twin(*, caches: Tensor, **others: Any) -> None:
    reference.compact_tree_kv(caches=list(caches), **others)


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
@pytest.mark.parametrize("name", PATHS)
def test_compact_tree_kv(name: str, batch_size: int, measure: Callable[..., None]) -> None:
    path = PATHS[name]
    num_moved = batch_size * sum(row != depth for depth, row in enumerate(path))
    slot_bytes = NUM_LAYERS * 2 * NUM_HEADS * HEAD_SIZE * 2
    measure(
        compact,
        twin,
        lambda: inputs(batch_size, path),
        num_bytes=2 * num_moved * slot_bytes or None,  # read and written
        twin_on_cpu=True,
    )
