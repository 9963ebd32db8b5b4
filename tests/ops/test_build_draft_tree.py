"""The kernel against its twin, bit for bit since sums have one order, and the twin against all paths."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from draft_trees import check_structure, drawn, drawn_ids
from pard_kernels import DraftTree, build_draft_tree, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
POISON = -77
LOWEST = torch.finfo(torch.float32).min
INF, NAN = math.inf, math.nan


def candidates(logprobs: torch.Tensor) -> dict[str, Any]:
    """Tokens that differ at each depth. logprobs: [B, K, C]"""
    return {"candidate_ids": drawn_ids(logprobs, max(100, logprobs.shape[2])), "candidate_logprobs": logprobs}


def poisoned(num_reqs: int, num_nodes: int) -> DraftTree:
    return DraftTree(*(buffer.fill_(POISON) for buffer in DraftTree.empty(num_reqs, num_nodes, "cpu")))


def run_both(given: dict[str, Any], num_nodes: int) -> DraftTree:
    """In poisoned memory with room for a request more, which must stay as it is."""
    num_reqs = len(given["candidate_ids"])
    whole = poisoned(num_reqs + 1, num_nodes)
    expected = DraftTree(*(buffer[:num_reqs] for buffer in whole))
    assert reference.build_draft_tree(**given, num_nodes=num_nodes, out=expected) is expected
    got = DraftTree(*(buffer.to(DEVICE) for buffer in poisoned(num_reqs + 1, num_nodes)))
    out = DraftTree(*(buffer[:num_reqs] for buffer in got))
    on_device = {name: tensor.to(DEVICE) for name, tensor in given.items()}
    assert build_draft_tree(**on_device, num_nodes=num_nodes, out=out) is out
    for name, wanted, buffer in zip(DraftTree._fields, whole, got, strict=True):
        assert torch.equal(bits(buffer.cpu()), bits(wanted)), name
        assert (wanted[num_reqs] == POISON).all()
    return expected


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_trees_in_slots(dtype: torch.dtype) -> None:
    """Each in its own, a request without one in none; tokens stay with the requests."""
    num_slots, num_nodes, slots = 5, 6, [3, -1, 0]
    given = candidates(drawn(len(slots), 4, 3))
    trees = run_both(given, num_nodes)
    request_slots = torch.tensor(slots, dtype=dtype)
    found = []
    for build, device in ((reference.build_draft_tree, "cpu"), (build_draft_tree, DEVICE)):
        of_requests, of_slots = poisoned(len(slots), num_nodes), poisoned(num_slots, num_nodes)
        out = of_slots._replace(token_ids=of_requests.token_ids, logprobs=of_requests.logprobs)
        out = DraftTree(*(buffer.to(device) for buffer in out))
        arguments = {name: tensor.to(device) for name, tensor in given.items()}
        build(**arguments, num_nodes=num_nodes, out=out, request_slots=request_slots.to(device))
        found.append(DraftTree(*(buffer.cpu() for buffer in out)))
    assert all(torch.equal(bits(wanted), bits(got)) for wanted, got in zip(*found, strict=True))
    assert torch.equal(found[0].token_ids, trees.token_ids)
    for name in ("parents", "depths", "ancestors"):
        rows, wanted = getattr(found[0], name), getattr(trees, name)
        assert torch.equal(rows[3], wanted[0])
        assert torch.equal(rows[0], wanted[2])
        assert (rows[[1, 2, 4]] == POISON).all()


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """-0.0 and 0.0 differ."""
    return tensor.view(torch.int32) if tensor.is_floating_point() else tensor


def test_worked_example() -> None:
    """Taken: a (-1), b (-2, opened before aa), aa (-2), ab (-2.5), ba (-3). The main chain is a, aa."""
    given = {
        "candidate_ids": torch.tensor([[[10, 11], [20, 21], [30, 31]]]),
        "candidate_logprobs": torch.tensor([[[-1.0, -2.0], [-1.0, -1.5], [-3.0, -4.0]]]),
    }
    tree = run_both(given, num_nodes=5)
    assert tree.token_ids.tolist() == [[10, 20, 11, 21, 20]]
    assert tree.parents.tolist() == [[0, 0, 1, 0, 1, 3]]
    assert tree.depths.tolist() == [[0, 1, 2, 1, 2, 2]]
    assert tree.ancestors.tolist() == [[0b1, 0b11, 0b111, 0b1001, 0b10011, 0b101001]]
    assert tree.logprobs.tolist() == [[-1.0, -2.0, -2.0, -2.5, -3.0]]
    assert run_both(given, num_nodes=2).token_ids.tolist() == [[10, 11]], "of equal ones what was opened first"


@pytest.mark.parametrize("step", [0.0, 0.5, 4.0])
@pytest.mark.parametrize(
    ("num_reqs", "num_depths", "num_candidates", "num_nodes"),
    [(1, 1, 1, 1), (2, 2, 2, 6), (1, 3, 2, 14), (3, 4, 3, 7), (2, 8, 4, 16), (1, 15, 8, 31), (1, 15, 10, 63)],
)
def test_random_trees(num_reqs: int, num_depths: int, num_candidates: int, num_nodes: int, step: float) -> None:
    given = candidates(drawn(num_reqs, num_depths, num_candidates, step=step))
    tree = run_both(given, num_nodes)
    for req in range(num_reqs):
        check_structure(DraftTree(*(part[req] for part in tree)), given["candidate_ids"][req])


@pytest.mark.parametrize(("num_depths", "num_candidates"), [(1, 5), (3, 3), (5, 2), (4, 3)])
def test_no_tree_is_likelier(num_depths: int, num_candidates: int) -> None:
    """Against all paths. Sums of multiples of 1/8 are exact, and many of them are equal."""
    (logprobs,) = drawn(1, num_depths, num_candidates, step=0.125)
    paths = [path for d in range(1, num_depths + 1) for path in product(range(num_candidates), repeat=d)]
    joint = [sum(float(logprobs[depth, rank]) for depth, rank in enumerate(path)) for path in paths]
    for num_nodes in {1, 2, 5, len(paths) // 2, len(paths)} - {0}:
        if num_nodes > min(len(paths), 63):
            continue
        tree = reference.build_draft_tree(**candidates(logprobs[None]), num_nodes=num_nodes)
        best = sorted(joint, reverse=True)[:num_nodes]
        assert tree.logprobs[0].sort(descending=True).values.tolist() == best
        assert sum(math.exp(p) for p in best) == pytest.approx(float(tree.logprobs.double().exp().sum()))


def test_63_nodes_fill_the_64_bits() -> None:
    chain = run_both(candidates(drawn(1, 63, 1)), num_nodes=63)
    assert chain.parents[0].tolist() == [0, *range(63)]
    assert chain.depths[0].tolist() == [*range(64)]
    assert chain.ancestors[0].tolist() == [(2 << row) - 1 for row in range(63)] + [-1]
    even = torch.stack((torch.zeros(32), torch.full((32,), -9.0)))
    star = run_both(candidates(even[None]), num_nodes=63)  # all of the first depth, then a child of each
    assert star.parents[0].tolist() == [0, 0, 1, *[0] * 31, *range(3, 33)]
    assert star.ancestors[0, -1] == 1 + 2**32 - 2**63


def test_as_many_candidates_as_lanes() -> None:
    star = run_both(candidates(drawn(1, 1, 32)), num_nodes=32)
    assert star.parents[0].tolist() == [0] * 33
    assert star.ancestors[0].tolist() == [1, *(1 | 1 << row for row in range(1, 33))]


@pytest.mark.parametrize("nothing", [NAN, -INF])
def test_what_is_nothing_is_taken_last(nothing: float) -> None:
    """Taken: a, b, then in the order of opening aa, c, ba, ab; NaN counts as -inf."""
    given = candidates(torch.tensor([[[-1.0, -2.0, nothing], [nothing] * 3], [[nothing] * 3] * 2]))
    tree = run_both(given, num_nodes=6)
    assert tree.logprobs.tolist() == [[-1.0, -INF, -2.0, -INF, -INF, -INF], [-INF] * 6]
    assert tree.parents.tolist() == [[0, 0, 1, 0, 0, 3, 1]] * 2


@pytest.mark.filterwarnings("ignore:.* encountered in add:RuntimeWarning")  # NumPy's, under the interpreter
@pytest.mark.parametrize(
    "depth",
    [
        (0.0, -0.0, -0.0),
        (-0.0, -1e-45, LOWEST),
        (LOWEST, LOWEST, -INF),
        (INF, 1.0, -INF),
        (-3.0, NAN, -1.0),
        (-3.0, -1.0, -2.0),
    ],
)
def test_odd_numbers(depth: tuple[float, ...]) -> None:
    """Also sums that overflow, inf - inf, and candidates that rise."""
    tree = run_both(candidates(torch.tensor([[depth] * 3])), num_nodes=20)
    assert not tree.logprobs.isnan().any()


def test_memory_is_allocated() -> None:
    given = {name: tensor.to(DEVICE) for name, tensor in candidates(drawn(2, 3, 2)).items()}
    tree = build_draft_tree(**given, num_nodes=5)
    wanted = DraftTree.empty(2, 5, "meta")
    assert [(part.shape, part.dtype) for part in tree] == [(part.shape, part.dtype) for part in wanted]
    assert tree.parents.device == given["candidate_ids"].device


OUT = DraftTree.empty(2, 4, DEVICE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_nodes": 0}, r"num_nodes must be 1 to 63.*got 0"),
        ({"num_nodes": 64}, r"num_nodes must be 1 to 63.*got 64"),
        ({"num_nodes": 15}, r"2 candidates at each of 3 depths make 14 nodes; got num_nodes=15"),
        ({"candidate_logprobs": torch.zeros(2, 3, 3)}, r"both be \[B, K, C\].*got \(2, 3, 2\) and \(2, 3, 3\)"),
        ({"candidate_ids": torch.zeros(3, 2).long()}, r"both be \[B, K, C\].*got \(3, 2\)"),
        (candidates(drawn(2, 3, 33)), r"a depth can have up to 32 candidates; got 33"),
        (
            {"candidate_ids": torch.zeros(2, 3, 2).int()},
            r"candidate_ids must be contiguous torch.int64; got torch.int32",
        ),
        ({"candidate_logprobs": torch.zeros(2, 3, 2).half()}, r"candidate_logprobs must be contiguous torch.float32"),
        ({"candidate_logprobs": torch.zeros(2, 2, 3).mT}, r"contiguous torch.float32.*strides \(6, 1, 3\)"),
        ({"out": DraftTree.empty(2, 5, DEVICE)}, r"token_ids of out must be \[2, 4\]; got \(2, 5\)"),
        ({"out": OUT._replace(depths=OUT.parents.long())}, r"depths of out must be contiguous torch.int32"),
        ({"out": OUT._replace(ancestors=torch.zeros(5, 2).long().T)}, r"ancestors of out must be contiguous"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    given = {name: tensor.to(DEVICE) for name, tensor in candidates(drawn(2, 3, 2)).items()}
    with pytest.raises(ValueError, match=message):
        build_draft_tree(**{"num_nodes": 4} | given | change)


def test_no_depth_is_refused() -> None:
    with pytest.raises(ValueError, match=r"with a depth and a candidate at least; got \(1, 0, 2\)"):
        build_draft_tree(**candidates(torch.zeros(1, 0, 2)), num_nodes=1)
