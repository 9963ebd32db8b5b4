"""What decides a launch of `speculative_attention`: sizes known on the host, so that a CUDA graph can hold it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from pard_kernels.tree_rows import MAX_TREE_ROWS

MAX_NUM_ROWS = MAX_TREE_ROWS  # of a chain too
MAX_NUM_SPLITS = 128
MIN_BLOCK = 16  # the least that tl.dot takes


@dataclass(frozen=True, kw_only=True)
class LaunchShape:
    """Tiles of one program: query rows (new rows x heads that share a KV head) against cached tokens or new rows."""

    block_rows: int
    block_cached: int
    block_new: int
    num_row_tiles: int
    num_warps: int
    num_stages: int

    @property
    def compiler_options(self) -> dict[str, int]:
        """How the kernel is compiled. Left to itself, ptxas spills registers to fit one more program beside others."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return options if torch.version.hip is not None else options | {"maxnreg": 255}


class Workspace(NamedTuple):
    """Partial results of the splits. What a split does not write is never read."""

    output: Tensor  # [num_splits, T, H, D] float32
    log_sum_exp: Tensor  # [num_splits, T, H] float32, base 2


def power_of_two(size: int) -> int:
    """The least power of two that is not below size, 16 at least."""
    return max(MIN_BLOCK, 1 << (size - 1).bit_length())


def launch_shape(
    num_rows: int,
    group_size: int,
    head_size: int,
    dtype: torch.dtype,
    *,
    is_heavy: bool = False,  # scores or cached values that take more than a product: FP8, soft cap, window
    is_whole_tree: bool = False,  # ancestor masks in a launch that does not split the prefix
) -> LaunchShape:
    """Tile sizes by head size and dtype of the query, all of them known on the host.

    benchmarks/cross_compile.py says why: with 64 cached tokens at a time, or 32 where the head is wider than 128, some
    of the listed GPUs spill registers; so do AMD's if heavy, and NVIDIA's sm_80 if a whole tree's tiles are larger.
    float32 without tensor cores holds whole heads in registers. A tile of 128 that is half empty takes as long as a
    full one, so that the 33 rows of a tree, with four heads each, are three tiles of 64.
    """
    is_amd = torch.version.hip is not None
    block_head = power_of_two(head_size)
    is_wide = block_head * dtype.itemsize > 256  # bytes: above 128 numbers of 16 bits
    most_rows = 32 if dtype.itemsize == 4 else 64 if is_wide or (is_whole_tree and not is_amd) else 128
    num_query_rows = num_rows * group_size
    block_rows = min(power_of_two(num_query_rows), most_rows)
    if block_rows == 128 and 0 < num_query_rows % 128 <= 64:
        block_rows = 64
    block_cached = 16 if is_wide or (is_heavy and is_amd) else 32
    return LaunchShape(
        block_rows=block_rows,
        block_cached=block_cached,
        block_new=min(power_of_two(num_rows), block_cached),
        num_row_tiles=-(-num_query_rows // block_rows),
        num_warps=8 if block_rows * block_head > 64 * 128 else 4,
        num_stages=2 if is_amd or is_wide else 3,
    )


def launch_variants(
    max_num_rows: int, max_num_splits: int, shape_of: Callable[[int, int], LaunchShape]
) -> list[tuple[int, int]]:
    """(rows, splits) of the calls that compile whatever a call of up to so many of them can need, each variant once.

    Rows decide by the tiles that they fill, one or several, splits by whether there are several and by the tile that
    merges them.
    """
    least_splits = {power_of_two(n) if n > 1 else 1: n for n in range(max_num_splits, 0, -1)}
    found: dict[tuple[LaunchShape, bool], tuple[int, int]] = {}
    for num_rows in range(1, max_num_rows + 1):
        for num_splits in sorted(least_splits.values())[:2]:
            shape = shape_of(num_rows, num_splits)
            tiles = replace(shape, num_row_tiles=min(shape.num_row_tiles, 2))
            found.setdefault((tiles, num_splits > 1), (num_rows, num_splits))
    return [*found.values(), *((1, num_splits) for num_splits in sorted(least_splits.values())[2:])]


def choose_num_splits(
    *,
    num_requests: int,
    num_rows: int,  # new rows of a request, at most
    num_heads: int,
    num_kv_heads: int,
    head_size: int,
    dtype: torch.dtype,  # of the query
    max_num_cached: int,
    num_multiprocessors: int,  # torch.cuda.get_device_properties(device).multi_processor_count
) -> int:
    """Splits of the prefix that give every multiprocessor 8 warps in one wave, without a look at the device.

    More do not fit the registers of all GPUs. A split is worth it only if it reads more of the prefix than it writes of
    partial results: twice as many tokens as it has query rows.
    """
    group_size = num_heads // num_kv_heads
    shape = launch_shape(num_rows, group_size, head_size, dtype)
    num_programs = max(num_requests, 1) * num_kv_heads * shape.num_row_tiles
    to_fill = 8 // shape.num_warps * num_multiprocessors // num_programs
    worth_it = max_num_cached // (2 * max(shape.block_rows, shape.block_cached))
    return max(1, min(to_fill, worth_it, MAX_NUM_SPLITS))


def workspace(num_splits: int, num_rows: int, num_heads: int, head_size: int, device: torch.device | str) -> Workspace:
    """Memory for the partial results of up to num_splits splits and num_rows rows (of all requests together).

    A CUDA graph needs one that lives as long as the graph; layers that run one after another can share it.
    """
    shape = (num_splits, num_rows, num_heads)
    return Workspace(
        output=torch.empty(*shape, head_size, dtype=torch.float32, device=device),
        log_sum_exp=torch.empty(shape, dtype=torch.float32, device=device),
    )
