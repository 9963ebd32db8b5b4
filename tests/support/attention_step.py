"""Inputs of `speculative_attention` for its tests: scattered pages, and NaN wherever no request may look."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAN = float("nan")
CACHES = ("key_cache", "value_cache")


@dataclass
class Step:
    """Tensors of one call, by the names of the arguments."""

    tensors: dict[str, Any]
    num_owned: int  # rows that a request owns; the others must stay as they are


def make_cache(layout: str, num_blocks: int, block_size: int, num_kv_heads: int, head_size: int) -> list[Tensor]:
    """Two poisoned views [num_blocks, block_size, G, D] of one float32 tensor."""
    n, s, g, d = num_blocks, block_size, num_kv_heads, head_size
    if layout == "block halves":
        return list(torch.full((n, 2, s, g, d), NAN).unbind(1))
    if layout == "heads first":
        return [half.transpose(1, 2) for half in torch.full((2, n, g, s, d), NAN)]
    if layout == "interleaved":
        return list(torch.full((n, g, s, 2 * d), NAN).transpose(1, 2).tensor_split(2, -1))
    return [half.permute(0, 3, 1, 2) for half in torch.full((2, n, g, d, s), NAN)]


def make_step(
    prefixes: Sequence[int],
    rows: Sequence[int],
    *,
    group_size: int = 2,
    num_kv_heads: int = 1,
    head_size: int = 64,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    cache_dtype: torch.dtype | None = None,
    layout: str = "block halves",
    padding_rows: int = 2,
) -> Step:
    """Random requests whose blocks lie scattered; what no request may read is NaN, and so is the output."""
    num_rows, heads = sum(rows) + padding_rows, num_kv_heads * (group_size + 2)
    qkv = torch.randn(num_rows, heads + 1, head_size)[:, :heads].to(dtype)  # rows are not contiguous
    qkv[sum(rows) :] = NAN
    query, key, value = qkv.split([group_size * num_kv_heads, num_kv_heads, num_kv_heads], 1)
    counts = [-(-prefix // block_size) for prefix in prefixes]
    caches = make_cache(layout, sum(counts) + 2, block_size, num_kv_heads, head_size)
    free = iter((torch.randperm(sum(counts) + 1) + 1).tolist())
    block_table = torch.zeros(len(prefixes), max(counts) + 2, dtype=torch.int32)  # block 0 stays poisoned
    for req, (prefix, count) in enumerate(zip(prefixes, counts, strict=True)):
        for i in range(count):
            block_table[req, i] = block = next(free)
            used = min(prefix - i * block_size, block_size)
            for cache in caches:
                cache[block, :used] = torch.randn(used, num_kv_heads, head_size)
    tensors: dict[str, Any] = {"query": query, "key": key, "value": value}
    tensors |= {name: laid_out(cache, cache_dtype or dtype) for name, cache in zip(CACHES, caches, strict=True)}
    tensors |= {
        "block_table": block_table,
        "query_start_loc": torch.tensor([0, *rows]).cumsum(0).int(),
        "num_cached": torch.tensor(prefixes, dtype=torch.int32),
    }
    if cache_dtype is not None:
        tensors |= {"key_scale": torch.tensor(0.75), "value_scale": torch.tensor([1.3])}
    options = {"scale": head_size**-0.5, "max_num_rows": max(rows), "num_splits": 1}
    return Step({name: laid_out(t, t.dtype) for name, t in tensors.items()} | options, sum(rows))


def laid_out(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """On the device and with the same strides, which `to` keeps of whole tensors only."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device=DEVICE).copy_(tensor)


def chain(num_rows: int) -> list[int]:
    """Each row's parent."""
    return list(range(-1, num_rows - 1))


def random_tree(num_rows: int) -> list[int]:
    return [int(torch.randint(-1, row, ())) if row else -1 for row in range(num_rows)]


def masks_of(trees: Sequence[Sequence[int]], padding_rows: int = 2) -> Tensor:
    """Bit j of row i: j is i or an ancestor of it. Bits beyond the request's rows mean nothing, so all are set."""
    masks: list[int] = []
    for parents in trees:
        first = len(masks)
        for row, parent in enumerate(parents):
            beyond = (1 << 64) - (1 << len(parents))
            masks.append(beyond | 1 << row | (masks[first + parent] if parent >= 0 else 0))
    signed = [mask - (1 << 64) if mask >> 63 else mask for mask in masks]
    return torch.tensor(signed + [-1] * padding_rows, dtype=torch.int64, device=DEVICE)
