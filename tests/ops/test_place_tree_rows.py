"""The kernel against its twin, which is checked against ancestors counted one by one."""

from typing import Any

import pytest
import torch
from pard_kernels import place_tree_rows, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
POISON = -77
NUM_SLOTS = 5


def arguments(trees: dict[int, list[int]], requests: list[tuple[int, int, int]], num_nodes: int) -> dict[str, Any]:
    """Requests of (slot, rows, rows of logits), those before position 100; parents of the trees' rows by slot."""
    depths = torch.full((NUM_SLOTS, num_nodes + 1), POISON, dtype=torch.int32)
    ancestors = torch.full((NUM_SLOTS, num_nodes + 1), POISON)
    for slot, parents in trees.items():
        for row, parent in enumerate(parents):
            bit = torch.tensor(1) << row
            depths[slot, row] = depths[slot, parent] + 1 if row else 0
            ancestors[slot, row] = ancestors[slot, parent] | bit if row else bit
    counts = torch.tensor(requests).T if requests else torch.zeros(3, 0, dtype=torch.int64)
    slots, num_rows, num_logits = counts.contiguous()
    positions = [position for req, rows in enumerate(num_rows) for position in range(100 * req, 100 * req + rows)]
    given = {
        "positions": torch.tensor([*positions, POISON, POISON]),
        "row_masks": torch.full((len(positions) + 2,), POISON),
        "row_starts": torch.cat([torch.zeros(1), num_rows.cumsum(0)]).int(),
        "logit_starts": torch.cat([torch.zeros(1), num_logits.cumsum(0)]).int(),
        "request_slots": slots,
        "depths": depths,
        "ancestors": ancestors,
    }
    return {name: tensor.to(DEVICE) for name, tensor in given.items()} | {"sign": 1}


def run_both(given: dict[str, Any]) -> dict[str, Any]:
    expected = {name: value.cpu().clone() if torch.is_tensor(value) else value for name, value in given.items()}
    reference.place_tree_rows(**expected)
    place_tree_rows(**given)
    for name, value in expected.items():
        assert value is given[name] or torch.equal(given[name].cpu(), torch.as_tensor(value)), name
    return expected


def test_worked_example() -> None:
    """A tree of a chain of two and a second child of the root; a prompt; a request that has no drafts."""
    given = arguments({2: [0, 0, 1, 0]}, [(2, 4, 4), (4, 3, 1), (0, 1, 1)], num_nodes=3)
    before = given["positions"].clone()
    out = run_both(given)
    assert out["positions"].tolist() == [0, 1, 2, 1, 100, 101, 102, 200, POISON, POISON]
    assert out["row_masks"].tolist() == [0b1, 0b11, 0b111, 0b1001, 0b1, 0b11, 0b111, 0b1, POISON, POISON]
    back = run_both(given | {"sign": -1, "row_masks": None})
    assert back["positions"].tolist() == before.tolist()


@pytest.mark.parametrize("num_nodes", [1, 31, 62, 63])
def test_all_sizes(num_nodes: int) -> None:
    """Random trees, whole and cut off, beside a prompt that is longer than masks are and a request without a slot."""
    generator = torch.Generator().manual_seed(num_nodes)
    trees = {
        slot: [0, *(int(torch.randint(row, (), generator=generator)) for row in range(1, num_nodes + 1))]
        for slot in range(NUM_SLOTS)
    }
    rows = num_nodes + 1
    given = arguments(trees, [(3, rows, rows), (1, 90, 1), (0, 2, 2), (-1, rows, rows), (4, rows, rows)], num_nodes)
    before = given["positions"].clone()
    out = run_both(given)
    assert out["row_masks"][rows + 63] == -1, "the last row that has a bit sees all before it"
    assert (out["row_masks"][rows + 64 : rows + 90] == POISON).all()
    run_both(given | {"sign": -1})
    assert torch.equal(given["positions"], before)


def test_nobody() -> None:
    given = arguments({}, [], num_nodes=2)
    assert run_both(given)["positions"].tolist() == [POISON, POISON]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logit_starts": torch.zeros(2)}, r"tells of 2 requests, .* got \(2,\) and \(2,\)"),
        ({"request_slots": torch.zeros(1)}, r"tells of 2 requests, .* got \(3,\) and \(1,\)"),
        ({"depths": torch.zeros(5, 65), "ancestors": torch.zeros(5, 65)}, r"1 to 64 rows for each slot; got \(5, 65\)"),
        ({"depths": torch.zeros(5, 3)}, r"depths and ancestors must both"),
        ({"sign": 0}, r"sign must be 1, or -1 for the way back; got 0"),
        ({"positions": torch.zeros(9)}, r"positions must be int64; got torch.float32"),
        ({"row_masks": torch.zeros(9).int()}, r"row_masks must be int64; got torch.int32"),
        ({"row_starts": torch.zeros(6)[::2]}, r"row_starts must be contiguous in the last dimension"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    given = arguments({0: [0, 0, 1, 0]}, [(0, 4, 4), (1, 3, 1)], num_nodes=3)
    with pytest.raises(ValueError, match=message):
        place_tree_rows(**given | change)
