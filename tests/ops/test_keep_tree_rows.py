"""The kernel against its twin: rows are equal or wrong."""

from typing import Any

import pytest
import torch
from pard_kernels import keep_tree_rows, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
POISON = -77
NUM_SLOTS, WIDTH = 5, 6


def arguments(requests: list[tuple[int, int, int, list[int]]]) -> dict[str, Any]:
    """Requests of (slot, rows, rows of logits, accepted rows)."""
    accepted_rows = torch.full((NUM_SLOTS, WIDTH), POISON, dtype=torch.int32)
    for slot, _, _, path in requests:
        accepted_rows[slot, : len(path)] = torch.tensor(path)
    num_rows, num_logits = (torch.tensor([request[i] for request in requests]) for i in (1, 2))
    given = {
        "kept_rows": torch.full((int(num_rows.sum()) + 3,), POISON, dtype=torch.int32),
        "row_starts": torch.cat([torch.zeros(1), num_rows.cumsum(0)]).int(),
        "logit_starts": torch.cat([torch.zeros(1), num_logits.cumsum(0)]).int(),
        "request_slots": torch.tensor([request[0] for request in requests]),
        "accepted_rows": accepted_rows,
        "num_sampled": torch.tensor([len(request[3]) for request in requests], dtype=torch.int32),
    }
    return {name: tensor.to(DEVICE) for name, tensor in given.items()}


def run_both(given: dict[str, Any]) -> list[int]:
    expected = {name: tensor.cpu().clone() for name, tensor in given.items()}
    reference.keep_tree_rows(**expected)
    keep_tree_rows(**given)
    for name, tensor in expected.items():
        assert torch.equal(given[name].cpu(), tensor), name
    return [int(row) for row in expected["kept_rows"]]


def test_worked_example() -> None:
    """A path through a tree of five rows, a prompt, a tree of whose nodes none is kept."""
    kept = run_both(arguments([(3, 5, 5, [0, 2, 4]), (0, 3, 1, [0]), (1, 2, 2, [0])]))
    assert kept == [0, 2, 4, 3, 4, 5, 6, 7, 8, 9, *[POISON] * 3]


def test_prompts_of_any_length() -> None:
    """Beside trees, in steps without slots, and counts beyond what was accepted or what there is."""
    given = arguments([(2, 300, 1, [0]), (4, 6, 6, [0, 1, 5]), (0, 129, 1, []), (1, 3, 3, [0, 2])])
    run_both(given)
    given["num_sampled"] += 9
    run_both(given)
    given["request_slots"] = torch.tensor([2, -1, 0, 1], dtype=torch.int32, device=DEVICE)
    assert run_both(given)[300:306] == list(range(300, 306))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logit_starts": torch.zeros(2)}, r"row_starts tells of 2 requests, logit_starts of 1"),
        ({"request_slots": torch.zeros(1)}, r"tells of 2 requests, request_slots must too; got \(1,\)"),
        ({"num_sampled": torch.zeros(1)}, r"tells of 2 requests, num_sampled must too"),
        ({"kept_rows": torch.zeros(9)}, r"kept_rows must be int32; got torch.float32"),
        ({"accepted_rows": torch.zeros(5, 12).int()[:, ::2]}, r"accepted_rows must be contiguous"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        keep_tree_rows(**arguments([(3, 5, 5, [0, 2, 4]), (0, 3, 1, [0])]) | change)
