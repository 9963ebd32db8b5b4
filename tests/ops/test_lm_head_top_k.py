"""The kernels against their twins. Small whole numbers make logits exact in any order of summation: ids and logits are
then equal or wrong, and equal logits are frequent.

N rows · H hidden size · V rows of weight · P parts
"""

import importlib
import math
from typing import Any

import pytest
import torch
from pard_kernels import TopK, lm_head_top_k, merge_top_k, reference, top_k_workspace
from pard_kernels.lm_head_top_k.launch import launch_shape
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
merge_module: Any = importlib.import_module("pard_kernels.lm_head_top_k.merge_top_k")

# fp32 has 24 significant bits; a sum of exponentials and its logarithm near 100 lose a few of them.
LOG_SUM_EXP_TOL = {"atol": 2e-5, "rtol": 1e-6}
# Sums of 200 products with partial sums near 4, in another order: 200 * 4 * 2 ** -24 at most.
LOGIT_TOL = {"atol": 5e-5, "rtol": 1e-5}


@pytest.fixture(autouse=True)
def _poison_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def poisoned(*size: Any, **kwargs: Any) -> Tensor:
        out = empty(*size, **kwargs)
        return out.fill_(float("nan") if out.is_floating_point() else -(2**30))

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture(autouse=True)
def _bfloat16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.9's interpreter multiplies bfloat16 as integers, and takes the bits of an integer for one."""
    if DEVICE != "cpu":
        return
    import triton.language as tl
    from triton.runtime.interpreter import interpreter_builder as builder

    def exact(handle: Any) -> Any:
        return builder.create_fp_to_fp(handle, tl.float32, None) if handle.dtype.scalar == tl.bfloat16 else handle

    def from_integer(self: Any, source: Any, dtype: Any) -> Any:
        is_bfloat16 = dtype.scalar == tl.bfloat16
        return self.cast_impl(self.cast_impl(source, tl.float32) if is_bfloat16 else source, dtype)

    monkeypatch.setattr(type(builder), "create_si_to_fp", from_integer)
    dot = type(builder).create_dot
    monkeypatch.setattr(type(builder), "create_dot", lambda self, a, b, *others: dot(self, exact(a), exact(b), *others))


def whole(num_rows: int, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randint(-2, 3, (num_rows, size), device=DEVICE).to(dtype)


def workspace(num_rows: int, k: int, num_splits: int) -> TopK:
    return top_k_workspace(num_rows=num_rows, k=k, device=DEVICE, num_splits=num_splits)


def check(got: TopK, expected: TopK) -> TopK:
    """Ids and logits are equal or wrong."""
    assert torch.equal(got.ids, expected.ids)
    assert torch.equal(got.logits, expected.logits)
    torch.testing.assert_close(got.log_sum_exps, expected.log_sum_exps, **LOG_SUM_EXP_TOL)
    return got


def run_both(hidden: Tensor, weight: Tensor, num_splits: int = 2, **options: Any) -> TopK:
    parts = workspace(hidden.shape[0], options["k"], num_splits)
    got = lm_head_top_k(hidden, weight, **options, workspace=parts)
    return check(got, reference.lm_head_top_k(hidden, weight, **options))


def branches(num_rows: int, hidden_size: int, num_valid: int, k: int, num_splits: int, dtype: torch.dtype) -> set[str]:
    """What a launch of these sizes goes through."""
    shape = launch_shape(num_rows, k, dtype)
    num_tiles = math.ceil(num_valid / shape["BLOCK_VOCAB"])
    tiles_per_split = math.ceil(num_tiles / num_splits)
    num_last = num_valid - (math.ceil(num_tiles / tiles_per_split) - 1) * tiles_per_split * shape["BLOCK_VOCAB"]
    found = {
        "row tiles": num_rows > shape["BLOCK_ROWS"],
        "masked rows": num_rows % shape["BLOCK_ROWS"] > 0,
        "masked hidden": hidden_size % shape["BLOCK_HIDDEN"] > 0,
        "masked vocab": num_valid % shape["BLOCK_VOCAB"] > 0,
        "splits": num_tiles > tiles_per_split,
        "tiles": tiles_per_split > 1,
        "short last split": num_tiles % tiles_per_split > 0,
        "fewer tokens than k in it": num_last < k,
        "free slots": k & (k - 1) > 0,
    }
    return {name for name, value in found.items() if value}


MASKED = {"masked rows", "masked hidden", "masked vocab"}
SPLITS = {"splits", "tiles", "short last split"}


@pytest.mark.parametrize(
    ("sizes", "dtype", "seen"),
    [
        pytest.param((1, 64, 1, 1, 1), torch.float32, {"masked rows", "masked vocab"}, id="one token"),
        pytest.param((7, 96, 15, 2, 1), torch.float32, {"masked rows", "masked vocab"}, id="less than a tile"),
        pytest.param((16, 64, 256, 1, 2), torch.float16, {"splits"}, id="nothing masked"),
        pytest.param((33, 200, 1000, 1, 3), torch.float32, {"row tiles"} | MASKED | SPLITS, id="all, k = 1"),
        pytest.param(
            (17, 200, 330, 3, 4), torch.float32,
            {"row tiles", "free slots", "splits", "tiles"} | MASKED, id="all, k = 3",
        ),
        pytest.param((3, 64, 520, 8, 2), torch.float32, SPLITS | MASKED - {"masked hidden"}, id="k = 8"),
        pytest.param(
            (1, 64, 100, 64, 2), torch.float32,
            {"masked rows", "masked vocab", "splits", "fewer tokens than k in it"}, id="k = 64",
        ),
        pytest.param((2, 64, 4099, 1, 9), torch.float16, SPLITS | MASKED - {"masked hidden"}, id="4099 tokens"),
        pytest.param((130, 96, 200, 1, 2), torch.float16, {"row tiles", "splits"} | MASKED, id="tiles of 128 rows"),
        pytest.param((70, 64, 200, 2, 1), torch.float16, {"row tiles", "tiles", "masked rows", "masked vocab"},
                     id="tiles of 64 rows"),
        pytest.param((32, 64, 100, 4, 1), torch.bfloat16, {"masked vocab"}, id="a tile of 32 rows"),
    ],
)  # fmt: skip
def test_equals_twin(sizes: tuple[int, int, int, int, int], dtype: torch.dtype, seen: set[str]) -> None:
    num_rows, hidden_size, num_valid, k, num_splits = sizes
    assert branches(*sizes, dtype) == seen
    run_both(whole(num_rows, hidden_size, dtype), whole(num_valid, hidden_size, dtype), num_splits, k=k)


@pytest.mark.parametrize("k", [1, 5])
def test_equal_logits(k: int) -> None:
    """Of equal logits the smallest id is best: in a tile, across the tiles of a split and across splits."""
    weight = whole(400, 64)
    assert branches(2, 64, 400, k, 3, torch.float32) >= {"splits", "tiles"}
    hidden = torch.ones(2, 64, device=DEVICE)
    hidden[1] = 0
    ties = [60, 61, 130, 131, 265, 300, 399]
    weight[ties] = 2
    assert run_both(hidden, weight, num_splits=3, k=k).ids.tolist() == [ties[:k], list(range(k))]
    weight[[60, 61]] = 0
    assert run_both(hidden, weight, num_splits=3, k=k).ids[0].tolist() == ties[2 : k + 2]


@pytest.mark.parametrize("k", [1, 4])
def test_padding_never_wins(k: int) -> None:
    hidden, weight = whole(5, 64), whole(200, 64)
    weight[150:] = 1000 * hidden[0]
    bias = torch.zeros(200, device=DEVICE)
    assert run_both(hidden, weight, k=k).ids[0, 0] == 150, "it would win"
    bias[150:] = 1e30
    assert (run_both(hidden, weight, k=k, num_valid=150, bias=bias).ids < 150).all()
    weight[150:] = float("nan")
    run_both(hidden, weight, k=k, num_valid=150)
    assert run_both(torch.zeros_like(hidden), weight, k=k, num_valid=k).ids.tolist() == [list(range(k))] * 5


@pytest.mark.parametrize("k", [1, 3])
def test_ranks_equal_the_whole(k: int) -> None:
    """Three shards, each with padding rows behind its tokens, as tensor parallelism cuts a vocabulary."""
    hidden, weight = whole(16, 64), whole(300, 64)
    expected = run_both(hidden, weight, k=k)
    padding = torch.full((28, 64), 1e4, device=DEVICE)
    shards = [torch.cat([shard, padding]) for shard in weight.split(100)]
    ranks = [run_both(hidden, w, k=k, vocab_start=100 * rank, num_valid=100) for rank, w in enumerate(shards)]
    parts = [torch.stack(part) for part in zip(*ranks, strict=True)]
    check(merge_top_k(*parts), expected)
    check(reference.merge_top_k(*parts), expected)
    assert len({int(i) // 100 for i in expected.ids[:, 0]}) == 3, "each rank wins somewhere"


def test_merge_takes_parts_in_any_order_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    num_parts, num_rows, k = 12, 2, 6
    monkeypatch.setattr(merge_module, "MAX_CANDIDATES", 32)
    assert num_parts * k > merge_module.MAX_CANDIDATES, "they take more than one turn"
    ids = torch.randperm(1000, device=DEVICE)[: num_parts * num_rows * k].view(num_parts, num_rows, k)
    logits = torch.randint(0, 4, ids.shape, device=DEVICE).float()
    log_sum_exps = torch.randn(num_rows, num_parts, device=DEVICE).T
    expected = reference.merge_top_k(ids, logits, log_sum_exps)
    assert (expected.logits[:, 0] == expected.logits[:, 1]).all(), "with equal logits"
    check(merge_top_k(ids, logits, log_sum_exps), expected)
    check(merge_top_k(ids.flip(0, 2), logits.flip(0, 2), log_sum_exps.flip(0)), expected)
    expected = reference.merge_top_k(ids, logits, log_sum_exps, k=2, vocab_start=7)
    check(merge_top_k(ids.int(), logits, log_sum_exps, k=2, vocab_start=7), expected)
    with pytest.raises(ValueError, match=r"log_sum_exps \[P, N\]; got \(12, 2, 6\), \(12, 2, 6\) and \(2, 12\)"):
        merge_top_k(ids, logits, log_sum_exps.T)


def test_strides() -> None:
    hidden, weight = whole(14, 192)[::2, ::3], whole(64, 400).T[::2]
    bias = whole(200, 2)[:, 1]
    assert 1 not in (*hidden.stride(), *weight.stride(), *bias.stride())
    run_both(hidden, weight, k=2, bias=bias)
    run_both(hidden, weight, k=1, bias=bias)


def test_workspace_of_more_rows_serves_again() -> None:
    parts = workspace(40, 3, 3)
    for num_rows, num_valid in ((20, 190), (7, 130), (1, 64)):
        hidden, weight = whole(num_rows, 64), whole(num_valid, 64)
        check(lm_head_top_k(hidden, weight, k=3, workspace=parts), reference.lm_head_top_k(hidden, weight, k=3))
    check(lm_head_top_k(hidden, weight, k=3), reference.lm_head_top_k(hidden, weight, k=3))


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:overflow")  # numpy's, in the interpreter
@pytest.mark.parametrize("k", [1, 4])
def test_infinities_and_nan(k: int) -> None:
    inf, nan = float("inf"), float("nan")
    zeros, weight = torch.zeros(1, 64, device=DEVICE), torch.zeros(150, 64, device=DEVICE)

    def logits_are(logits: Tensor) -> TopK:
        return run_both(zeros, weight, num_splits=3, k=k, vocab_start=5, bias=logits)

    first = list(range(5, 5 + k))
    logits = torch.randn(150, device=DEVICE)
    logits[::2] = nan
    assert (logits_are(logits).ids % 2 == 0).all(), "odd rows, 5 added"
    logits[:64] = -inf
    assert (logits_are(logits).ids >= 64 + 5).all()
    logits[[70, 140]] = inf
    out = logits_are(logits)
    assert out.ids[0, :2].tolist() == [75, 145][:k]
    assert out.log_sum_exps.tolist() == [inf]
    for nothing in (nan, -inf):
        out = logits_are(torch.full((150,), nothing, device=DEVICE))
        assert out.ids.tolist() == [first]
        assert out.logits.tolist() == [[-inf] * k]
        assert out.log_sum_exps.tolist() == [-inf]
    assert logits_are(torch.full((150,), 1e30, device=DEVICE)).log_sum_exps.tolist() == [pytest.approx(1e30)]

    hidden = whole(2, 64)
    hidden[0, 0] = nan
    assert run_both(hidden, whole(150, 64), k=k).ids[0].tolist() == list(range(k)), "a row of nothing but NaN"


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        pytest.param({"k": 1}, torch.bfloat16, id="bf16"),
        pytest.param({"k": 4}, torch.float16, id="fp16"),
        pytest.param({"k": 4, "scale": 0.25, "soft_cap": 3.0}, torch.float32, id="soft cap, then scale"),
        pytest.param({"k": 1, "soft_cap": 30.0, "has_bias": True}, torch.bfloat16, id="bias, then soft cap"),
    ],
)
def test_real_numbers(options: dict[str, Any], dtype: torch.dtype) -> None:
    """Ids wherever the logits around them are further apart than rounding."""
    num_rows, num_valid, k = 16, 300, options["k"]
    hidden = torch.randn(num_rows, 200, device=DEVICE).to(dtype)
    weight = (torch.randn(num_valid, 200, device=DEVICE) / 200**0.5).to(dtype)
    options = dict(options)
    bias = torch.randn(num_valid, device=DEVICE).to(dtype) if options.pop("has_bias", False) else None
    got = lm_head_top_k(hidden, weight, **options, bias=bias, workspace=workspace(num_rows, k, 2))
    every = reference.lm_head_top_k(hidden, weight, **(options | {"k": num_valid}), bias=bias)

    torch.testing.assert_close(got.logits, every.logits[:, :k], **LOGIT_TOL)
    torch.testing.assert_close(got.log_sum_exps, every.logits.logsumexp(1), **LOGIT_TOL)
    gaps = -every.logits[:, : k + 1].diff(dim=1)  # [N, k] to the next
    gaps[:, 1:] = torch.minimum(gaps[:, 1:], gaps[:, :-1])  # and to the one before
    is_clear = gaps > 2 * LOGIT_TOL["atol"]
    assert is_clear.float().mean() > 0.9
    assert torch.equal(got.ids[is_clear], every.ids[:, :k][is_clear])


@pytest.mark.parametrize(
    ("num_rows", "k", "dtype"),
    [(5, 1, torch.bfloat16), (33, 1, torch.float32), (17, 4, torch.float16)],
    ids=["bf16", "row tiles", "k = 4"],
)
def test_int8_weight(num_rows: int, k: int, dtype: torch.dtype) -> None:
    """Scales are powers of two, so that logits stay exact; the last row of weight uses all of int8."""
    hidden = whole(num_rows, 200, dtype)
    weight = torch.randint(-20, 21, (300, 200), device=DEVICE).to(torch.int8)
    weight[299] = torch.tensor([-128, 127], dtype=torch.int8, device=DEVICE).repeat(100)
    weight_scale = (2.0 ** torch.randint(-6, 0, (600,), device=DEVICE))[::2]
    assert weight_scale.stride(0) == 2
    options = {"k": k, "weight_scale": weight_scale, "bias": whole(300, 1, dtype)[:, 0]}
    ids = run_both(hidden, weight, num_splits=3, **options).ids
    assert len(ids.unique()) > num_rows // 2
    plain = lm_head_top_k(hidden, weight.to(dtype), k=k, workspace=workspace(num_rows, k, 3)).ids
    assert not torch.equal(ids, plain), "the scales decide"


def test_large_logits_do_not_overflow() -> None:
    hidden, weight = 100 * whole(3, 64), whole(300, 64)
    out = run_both(hidden, weight, k=1)
    assert (out.logits > 1000).all()
    assert run_both(-hidden.abs(), weight.abs() + 1, k=1).log_sum_exps.max() < -1000
