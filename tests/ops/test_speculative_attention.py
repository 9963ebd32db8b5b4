"""The kernel against its twin on odd shapes, in poisoned memory; the twin against torch's attention once.

What the interpreter can't show: speed, races, rounding inside matrix instructions.
"""

from typing import Any

import numpy as np
import pytest
import torch
from attention_step import CACHES, DEVICE, NAN, Step, chain, make_step, masks_of, random_tree
from pard_kernels import reference, speculative_attention, workspace
from pard_kernels.speculative_attention.launch_shape import launch_shape
from torch import Tensor

FP8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)
NVIDIA = torch.cuda.get_device_capability() if DEVICE == "cuda" and torch.version.hip is None else None
# float32: the same products in another order. 16 bits: weights and results are rounded once each, to 11 and 8 bits,
# and results are below 4.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2**-9, torch.bfloat16: 2**-6}
LAYOUTS = ("block halves", "heads first", "interleaved", "dims strided")


@pytest.fixture(autouse=True)
def _exact_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.9's interpreter multiplies bfloat16 as integers, cuts it off, and rounds FP8 without a carry."""
    if DEVICE != "cpu":
        return
    import triton.language as tl
    from triton.runtime import interpreter

    floats = {tl.float32: torch.float32, tl.float16: torch.float16, tl.bfloat16: torch.bfloat16,
              tl.float8e4nv: FP8[0], tl.float8e4b8: FP8[1]}  # fmt: skip
    signed = {1: np.int8, 2: np.int16, 4: np.int32}

    def convert(data: Any, source: Any, target: Any, rounding_mode: Any) -> Any:
        bits = torch.from_numpy(np.ascontiguousarray(data).view(signed[data.dtype.itemsize]))
        converted = bits.view(floats[source]).to(floats[target])
        return converted.view(getattr(torch, f"int{8 * converted.itemsize}")).numpy()

    def exact(handle: Any) -> Any:
        return builder.create_fp_to_fp(handle, tl.float32, None) if handle.dtype.scalar == tl.bfloat16 else handle

    builder = interpreter.interpreter_builder
    dot = type(builder).create_dot
    monkeypatch.setattr(interpreter, "_convert_float", convert)
    monkeypatch.setattr(type(builder), "create_dot", lambda self, a, b, *others: dot(self, exact(a), exact(b), *others))


def run_both(step: Step, **options: Any) -> tuple[Tensor, Tensor | None]:
    """Compare kernel and twin; give the kernel's result and the log-sum-exp of its splits."""
    arguments = step.tensors | options
    query, num_splits = arguments["query"], arguments["num_splits"]
    # Wider than wanted in every way.
    partial = workspace(num_splits + 1, query.shape[0] + 3, *query.shape[1:], query.device)
    for tensor in partial:
        tensor.fill_(NAN)
    out = torch.full((query.shape[0], query.shape[1] + 1, query.shape[2]), NAN, device=DEVICE, dtype=query.dtype)
    got = speculative_attention(**arguments, out=out[:, :-1], partial=partial)
    expected = reference.speculative_attention(**arguments)
    owned = slice(0, step.num_owned)
    tolerance = TOLERANCE[query.dtype]
    assert not expected[owned].isnan().any(), "the twin is right only if it reads no poison"
    torch.testing.assert_close(got[owned].float(), expected[owned].float(), rtol=tolerance, atol=tolerance)
    assert got[step.num_owned :].isnan().all(), "rows of no request are not written"
    assert out[:, -1].isnan().all(), "only the given rows and heads are written"
    return got[owned], partial.log_sum_exp[:num_splits, owned] if num_splits > 1 else None


def num_splits_used(log_sum_exp: Tensor | None) -> int:
    """Splits that saw something; the others say that they did not."""
    assert log_sum_exp is not None
    assert not log_sum_exp.isnan().any()
    used = log_sum_exp.isfinite().all(2).all(1)
    assert (used | (log_sum_exp == -torch.inf).all(2).all(1)).all()
    return int(used.sum())


@pytest.mark.parametrize("num_splits", [1, 2])
@pytest.mark.parametrize("prefix", [0, 1, 15, 16, 17, 31, 32, 33, 63, 1000])
def test_prefix_lengths(prefix: int, num_splits: int) -> None:
    _, log_sum_exp = run_both(make_step([prefix], [3], group_size=1), num_splits=num_splits)
    if num_splits > 1:  # one tile of the prefix counts as much as the dense block
        assert num_splits_used(log_sum_exp) == (1 if prefix == 0 else 2)


@pytest.mark.parametrize(
    ("prefix", "num_rows", "num_splits", "used"),
    [
        (1000, 2, 7, 7), (200, 2, 7, 5), (33, 2, 100, 3), (0, 2, 7, 1), (640, 2, 21, 21), (672, 2, 21, 12),
        (320, 33, 12, 11), (320, 33, 11, 6), (0, 33, 7, 1), (64, 64, 2, 2),
    ],
)  # fmt: skip
def test_splits(prefix: int, num_rows: int, num_splits: int, used: int) -> None:
    """Tiles of 32, of new rows too: of 21 and one, ten splits take two each, one takes one, the last the new rows."""
    step = make_step([prefix], [num_rows], group_size=1, head_size=32)
    _, log_sum_exp = run_both(step, num_splits=num_splits)
    assert num_splits_used(log_sum_exp) == used


@pytest.mark.parametrize(
    ("num_rows", "group_size"),
    [(1, 1), (1, 8), (2, 3), (5, 5), (9, 4), (16, 2), (17, 6), (31, 1), (32, 4), (33, 7), (64, 2), (40, 12)],
)
@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
def test_rows_and_groups(num_rows: int, group_size: int, tree: bool) -> None:
    step = make_step([21], [num_rows], group_size=group_size, head_size=16)
    masks = masks_of([random_tree(num_rows)]) if tree else None
    run_both(step, ancestor_masks=masks)
    shape = launch_shape(num_rows, group_size, 16, torch.float32)
    assert shape.num_row_tiles == -(-num_rows * group_size // 32)


@pytest.mark.parametrize("head_size", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_head_sizes_and_dtypes(head_size: int, dtype: torch.dtype) -> None:
    step = make_step([70, 3], [3, 2], group_size=2, num_kv_heads=2, head_size=head_size, dtype=dtype)
    run_both(step, num_splits=2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("block_size", [16, 32, 128, 24])
def test_caches(layout: str, block_size: int) -> None:
    step = make_step([130, 61], [4, 3], num_kv_heads=2, head_size=48, block_size=block_size, layout=layout)
    assert not step.tensors["key_cache"].is_contiguous()
    run_both(step, num_splits=1)


def test_many_requests() -> None:
    """Padded ones without rows at the start, between and at the end, and every kind of tree."""
    rows = [0, 5, 1, 0, 0, 16, 2, 9, 0]
    step = make_step([40, 0, 17, 3, 0, 69, 1, 64, 7], rows, group_size=1, num_kv_heads=2, head_size=16)
    run_both(step, num_splits=2)
    trees = [random_tree(n) if i % 2 else chain(n) for i, n in enumerate(rows)]
    run_both(step, num_splits=3, ancestor_masks=masks_of(trees))


@pytest.mark.parametrize("num_splits", [1, 3])
def test_part_of_a_batch(num_splits: int) -> None:
    """The first two of four requests, or the last two, in slices of the batch's tensors: the others' rows stay."""
    step = make_step([40, 17, 65, 33], [5, 3, 2, 6], num_kv_heads=2, head_size=32)
    whole, _ = run_both(step, num_splits=num_splits)
    query = step.tensors["query"]
    for requests, rows in ((slice(0, 2), slice(0, 8)), (slice(2, 4), slice(8, 16))):
        part = step.tensors | {name: step.tensors[name][rows] for name in ("query", "key", "value")}
        part |= {name: step.tensors[name][requests] for name in ("block_table", "num_cached")}
        starts = step.tensors["query_start_loc"][requests.start : requests.stop + 1]
        part["query_start_loc"] = starts - rows.start if rows.start else starts
        out = torch.full_like(query, NAN)
        speculative_attention(**part | {"num_splits": num_splits}, out=out[rows])
        assert torch.equal(out[rows], whole[rows])
        out[rows] = NAN
        assert out.isnan().all()


@pytest.mark.parametrize(("num_rows", "block_rows", "num_row_tiles"), [(33, 64, 3), (32, 128, 1), (50, 128, 2)])
def test_wide_tiles_of_16_bits(num_rows: int, block_rows: int, num_row_tiles: int) -> None:
    """128 query rows a tile, unless the last one would be half empty."""
    step = make_step([37], [num_rows], group_size=4, dtype=torch.float16)
    shape = launch_shape(num_rows, 4, 64, torch.float16)
    assert (shape.block_rows, shape.num_row_tiles) == (block_rows, num_row_tiles)
    run_both(step, num_splits=2, ancestor_masks=masks_of([random_tree(num_rows)]))


def test_no_requests_and_no_rows() -> None:
    step = make_step([9, 4], [0, 0])
    step.tensors["max_num_rows"] = 4
    run_both(step)
    run_both(step, num_splits=2)


@pytest.mark.parametrize("num_rows", [1, 16, 64])
def test_causal_is_the_chain_of_masks(num_rows: int) -> None:
    step = make_step([50], [num_rows], group_size=1)
    causal, _ = run_both(step)
    masked, _ = run_both(step, ancestor_masks=masks_of([chain(num_rows)]))
    assert torch.equal(causal, masked)


def test_rows_that_see_nothing() -> None:
    step = make_step([0, 40], [3, 2], padding_rows=0)
    masks = torch.tensor([0, 1, 0, 0, 3], device=DEVICE)
    for num_splits in (1, 2):
        got, _ = run_both(step, num_splits=num_splits, ancestor_masks=masks)
        assert (got[[0, 2]] == 0).all()
        assert (got[[1, 3, 4]] != 0).any(1).all()


@pytest.mark.parametrize("soft_cap", [0.5, 50.0])
def test_soft_cap(soft_cap: float) -> None:
    step = make_step([60], [5], group_size=3)
    capped, _ = run_both(step, num_splits=2, soft_cap=soft_cap)
    plain, _ = run_both(step, num_splits=2)
    assert (capped - plain).abs().max() > 1e-4


@pytest.mark.parametrize("num_splits", [1, 3])
@pytest.mark.parametrize("window", [16, 33, 100, 5000])
@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
def test_window(window: int, tree: bool, num_splits: int) -> None:
    """Blocks before the window were given back, so they hold poison."""
    step = make_step([170, 12, 0], [6, 16, 2], group_size=1, head_size=32)
    step.tensors["block_table"][0, : max(170 - window + 1, 0) // 16] = 0
    masks = masks_of([random_tree(6), random_tree(16), chain(2)]) if tree else None
    run_both(step, num_splits=num_splits, window=window, ancestor_masks=masks)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.skipif(NVIDIA is not None and NVIDIA < (8, 9), reason="this GPU converts no FP8")
@pytest.mark.parametrize("cache_dtype", FP8[:1] if NVIDIA else FP8, ids=str)
def test_fp8(cache_dtype: torch.dtype, dtype: torch.dtype) -> None:
    """New keys of every size, one beyond what FP8 holds."""
    step = make_step([75, 0], [5, 2], num_kv_heads=2, dtype=dtype, cache_dtype=cache_dtype)
    key, value = step.tensors["key"], step.tensors["value"]
    key *= torch.logspace(-3, 1, 64, device=DEVICE, dtype=dtype)
    key[2, 0, 3] = 1000
    value[1, 1, 7] = -1000
    run_both(step, num_splits=2)


def test_blocks_beyond_32_bits() -> None:
    """The third block begins 2^31 numbers in; memory that nobody touches is never there."""
    storage = torch.empty(2**31 + 2048, dtype=torch.float16, device=DEVICE)
    cache = storage.as_strided((3, 16, 1, 64), (2**30, 64, 64, 1))
    step = make_step([32], [2], dtype=torch.float16)
    for name in CACHES:
        for block, used in ((1, 0), (2, 1)):
            cache[block] = step.tensors[name][step.tensors["block_table"][0, used]]
        small = cache[1:].clone()
        expected = speculative_attention(**step.tensors | {"block_table": torch.tensor([[0, 1]]).int().to(DEVICE),
                                                           "key_cache": small, "value_cache": small})  # fmt: skip
        got = speculative_attention(**step.tensors | {"block_table": torch.tensor([[1, 2]]).int().to(DEVICE),
                                                      "key_cache": cache, "value_cache": cache})  # fmt: skip
        assert torch.equal(got[: step.num_owned], expected[: step.num_owned])
