"""What `speculative_attention` means: the twin against torch's attention, refusals, and what decides a launch."""

from typing import Any

import pytest
import torch
from pard_kernels import choose_num_splits, reference, speculative_attention
from pard_kernels.speculative_attention.checks import check_fp8
from pard_kernels.speculative_attention.launch_shape import launch_shape
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# float32 sums of up to 60 products in another order.
TOLERANCE = 1e-5
PREFIXES, ROWS = [37, 0, 16, 5], [4, 3, 0, 1]
# Parents of each request's new rows; -1 hangs on the prefix.
TREES = [[-1, 0, 0, 1], [-1, -1, 1], [], [-1]]


def paged(head_size: int = 32, dtype: torch.dtype = torch.float32) -> tuple[dict[str, Any], list[Tensor], list[Tensor]]:
    """Arguments, and each request's keys and values as one dense sequence."""
    num_rows, block_size = sum(ROWS), 8
    arguments: dict[str, Any] = {"query": torch.randn(num_rows, 6, head_size).to(dtype)}
    arguments |= {name: torch.randn(num_rows, 2, head_size).to(dtype) for name in ("key", "value")}
    arguments |= {name: torch.randn(12, block_size, 2, head_size).to(dtype) for name in ("key_cache", "value_cache")}
    block_table = torch.stack([torch.randperm(12)[:6] for _ in PREFIXES]).int()
    dense: dict[str, list[Tensor]] = {"key": [], "value": []}
    for name, sequences in dense.items():
        cache = arguments[f"{name}_cache"]
        for req, prefix in enumerate(PREFIXES):
            first = sum(ROWS[:req])
            cached = [cache[block_table[req, i // block_size], i % block_size] for i in range(prefix)]
            sequences.append(
                torch.stack([*cached, *arguments[name][first : first + ROWS[req]]]) if ROWS[req] else cache
            )
    arguments |= {
        "block_table": block_table,
        "query_start_loc": torch.tensor([0, *ROWS]).cumsum(0).int(),
        "num_cached": torch.tensor(PREFIXES, dtype=torch.int32),
        "scale": 0.2,
        "max_num_rows": max(ROWS),
        "num_splits": 1,
    }
    return arguments, dense["key"], dense["value"]


def ancestors(parents: list[int], row: int) -> set[int]:
    return set() if row < 0 else {row} | ancestors(parents, parents[row])


def dense_mask(prefix: int, parents: list[int], window: int | None) -> Tensor:
    """Position by position. [rows, P + rows]"""
    rows = []
    for row in range(len(parents)):
        seen = ancestors(parents, row)
        position = prefix + len(seen) - 1
        cached = [window is None or position - i < window for i in range(prefix)]
        rows.append(cached + [i in seen for i in range(len(parents))])
    return torch.tensor(rows)


@pytest.mark.parametrize("window", [None, 9, 30])
@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
def test_twin_is_attention(tree: bool, window: int | None) -> None:
    arguments, keys, values = paged()
    trees = TREES if tree else [list(range(-1, n - 1)) for n in ROWS]
    masks = torch.tensor([sum(1 << i for i in ancestors(t, row)) for t in trees for row in range(len(t))])
    got = reference.speculative_attention(**arguments, ancestor_masks=masks if tree else None, window=window)
    for req, parents in enumerate(trees):
        if not parents:
            continue
        rows = slice(sum(ROWS[:req]), sum(ROWS[: req + 1]))
        query, key, value = (t.transpose(0, 1) for t in (arguments["query"][rows], keys[req], values[req]))
        mask = dense_mask(PREFIXES[req], parents, window)
        expected = scaled_dot_product_attention(query, key, value, mask, scale=0.2, enable_gqa=True).transpose(0, 1)
        torch.testing.assert_close(got[rows], expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_twin_of_an_fp8_cache_sees_what_it_holds() -> None:
    """Keys and values written to the cache and read back are those of the step that wrote them."""
    arguments, *_ = paged()
    scales = {"key_scale": torch.tensor(0.5), "value_scale": torch.tensor(0.3)}
    for name in ("key", "value"):
        arguments[f"{name}_cache"] = (arguments[f"{name}_cache"] / scales[f"{name}_scale"]).to(torch.float8_e4m3fn)
    step = reference.speculative_attention(**arguments, **scales)
    # Request 1 has no prefix: write its first two rows to a block of its own, and ask for the third alone.
    cached = arguments | {"num_cached": torch.tensor([2]), "query_start_loc": torch.tensor([0, 1])}
    cached |= {name: arguments[name][6:7] for name in ("query", "key", "value")}
    cached["block_table"] = torch.tensor([[3]])
    for name in ("key", "value"):
        cached[f"{name}_cache"][3, :2] = (arguments[name][4:6] / scales[f"{name}_scale"]).to(torch.float8_e4m3fn)
    torch.testing.assert_close(reference.speculative_attention(**cached, **scales), step[6:7])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(8, 6, 32).double()}, "must have one dtype"),
        ({"query": torch.zeros(8, 5, 32)}, r"wants key and value \[8, a divisor of 5, 32\]"),
        ({"query": torch.zeros(8, 32, 6).transpose(1, 2)}, "query must be contiguous in its last dimension"),
        ({"value": torch.zeros(8, 2, 16)}, r"got \(8, 2, 32\) and \(8, 2, 16\)"),
        ({"key_cache": torch.zeros(12, 2, 8, 32)}, "Another order of dimensions is a permuted view"),
        ({"value_cache": torch.zeros(12, 2, 8, 32).transpose(1, 2)}, "must have one layout"),
        ({"key_cache": torch.zeros(12, 8, 2, 32).half()}, "or both FP8 e4m3"),
        ({"num_cached": torch.zeros(3, dtype=torch.int32)}, "num_cached counts 3 requests"),
        ({"num_cached": torch.zeros(4)}, "num_cached must be int32"),
        ({"out": torch.zeros(8, 6, 64)}, r"out must be \(8, 6, 32\)"),
        ({"max_num_rows": 65}, "max_num_rows must be 1 to 64"),
        ({"num_splits": 129}, "num_splits must be 1 to 128"),
        ({"scale": 0.0}, "scale must be above 0"),
        ({"window": 3}, "window must be max_num_rows = 4 or more"),
        ({"ancestor_masks": torch.zeros(8, dtype=torch.int32)}, r"ancestor_masks must be int64 \[8\]"),
        ({"key_scale": torch.ones(1)}, "key_scale must be one float32"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    arguments, *_ = paged()
    with pytest.raises(ValueError, match=message):
        speculative_attention(**arguments | change)


def test_fp8_needs_a_scale_and_a_chip() -> None:
    arguments, *_ = paged()
    arguments |= {name: arguments[name].to(torch.float8_e4m3fn) for name in ("key_cache", "value_cache")}
    with pytest.raises(ValueError, match="value_scale must be one float32 on the device for an FP8 cache"):
        speculative_attention(**arguments, key_scale=torch.ones(1))
    check_fp8(torch.float8_e4m3fn, (8, 9))
    check_fp8(torch.float8_e4m3fnuz, None)
    for dtype, capability in ((torch.float8_e4m3fn, (8, 0)), (torch.float8_e4m3fnuz, (9, 0))):
        with pytest.raises(ValueError, match=r"must be torch\.float8_e4m3fn on compute capability 8\.9"):
            check_fp8(dtype, capability)


@pytest.mark.parametrize(
    ("num_requests", "num_kv_heads", "max_num_cached", "expected", "num_rows"),
    [
        pytest.param(1, 8, 131072, 33, 16, id="one request fills the device"),
        pytest.param(1, 8, 131072, 16, 32, id="with programs of 8 warps"),
        pytest.param(1, 8, 131072, 8, 64, id="two tiles of rows"),
        pytest.param(1, 8, 131072, 11, 33, id="three smaller ones"),
        pytest.param(1, 1, 131072, 128, 16, id="no more than a merge takes"),
        pytest.param(4, 8, 131072, 8, 16, id="four share it"),
        pytest.param(64, 8, 131072, 1, 16, id="full without splits"),
        pytest.param(1, 8, 1024, 8, 16, id="128 tokens a split at least"),
        pytest.param(1, 8, 1024, 4, 32, id="256 for twice the rows"),
        pytest.param(1, 8, 0, 1, 16, id="nothing cached"),
        pytest.param(0, 8, 1024, 8, 16, id="no requests"),
    ],
)
def test_num_splits(num_requests: int, num_kv_heads: int, max_num_cached: int, expected: int, num_rows: int) -> None:
    """132 multiprocessors and four query heads that share a KV head."""
    num_splits = choose_num_splits(
        num_requests=num_requests,
        num_rows=num_rows,
        num_heads=4 * num_kv_heads,
        num_kv_heads=num_kv_heads,
        head_size=128,
        dtype=torch.bfloat16,
        max_num_cached=max_num_cached,
        num_multiprocessors=132,
    )
    assert num_splits == expected


@pytest.mark.parametrize("num_multiprocessors", [20, 132, 304])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_one_row_of_one_request_gets_the_most_splits(dtype: torch.dtype, num_multiprocessors: int) -> None:
    """What an engine warms up for."""
    sizes: dict[str, Any] = {"num_heads": 32, "num_kv_heads": 8, "head_size": 64, "dtype": dtype}
    sizes |= {"max_num_cached": 8192, "num_multiprocessors": num_multiprocessors}
    most = choose_num_splits(num_requests=1, num_rows=1, **sizes)
    for num_requests in (0, 1, 2, 3, 8, 64):
        for num_rows in (1, 2, 9, 16, 30, 64):
            assert choose_num_splits(num_requests=num_requests, num_rows=num_rows, **sizes) <= most


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("head_size", [64, 80, 128, 256])
def test_tiles_hold_every_row(head_size: int, dtype: torch.dtype) -> None:
    for num_rows in range(1, 65):
        for group_size in (1, 3, 8, 64):
            shape = launch_shape(num_rows, group_size, head_size, dtype)
            assert 0 <= shape.num_row_tiles * shape.block_rows - num_rows * group_size < shape.block_rows
            assert min(shape.block_rows, shape.block_cached, shape.block_new) >= 16
