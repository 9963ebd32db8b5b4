"""The kernel against its twin: one addition in float32, rounded once, is equal or wrong."""

from typing import Any

import pytest
import torch
from pard_kernels import add_target_features, reference
from pard_kernels.add_target_features import launch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
POISON = -77.0
# Triton's interpreter cuts bfloat16 off where a GPU rounds.
BFLOAT16_TOL = 2**-7 if DEVICE == "cpu" else 0.0


def arguments(
    spans: list[int], *, hidden_size: int = 40, num_rows: int | None = None, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Requests of so many rows each, in a table of 12 rows of the step, 10 that slots carry, and nothing."""
    generator = torch.Generator().manual_seed(0)
    starts = torch.tensor([0, *spans]).cumsum(0).int()
    total = int(starts[-1])
    features = torch.randn(23, hidden_size, generator=generator).to(dtype)
    features[22] = 0
    own = 12 + torch.arange(len(spans)).repeat_interleave(torch.tensor(spans))  # what the request's slot carries
    choices = torch.stack([torch.randint(12, (total,), generator=generator), own, torch.full((total,), 22)])
    chosen = torch.randint(3, (1, total), generator=generator)
    carries = torch.stack([torch.randperm(12, generator=generator)[: len(spans)], 12 + torch.arange(len(spans))], 1)
    given = {
        "embeddings": torch.randn(total if num_rows is None else num_rows, hidden_size, generator=generator).to(dtype),
        "features": features,
        "feature_rows": choices.gather(0, chosen)[0].int(),
        "carries": carries.int(),
        "query_start_loc": starts,
        "inputs_embeds": torch.full((total + 3, hidden_size), POISON, dtype=dtype),
    }
    return {name: tensor.to(DEVICE) for name, tensor in given.items()}


def run_both(given: dict[str, Any]) -> dict[str, Any]:
    expected = {name: tensor.cpu().clone() for name, tensor in given.items()}
    reference.add_target_features(**expected)
    add_target_features(**given)
    for name, tensor in expected.items():
        tolerance = BFLOAT16_TOL if name == "inputs_embeds" and tensor.dtype == torch.bfloat16 else 0.0
        torch.testing.assert_close(given[name].cpu(), tensor, rtol=tolerance, atol=0.0, msg=name)
    return expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("hidden_size", [40, 128, 300])
def test_sums(dtype: torch.dtype, hidden_size: int) -> None:
    given = arguments([6, 1, 0, 17, 40], hidden_size=hidden_size, dtype=dtype)
    before = {name: tensor.clone() for name, tensor in given.items()}
    run_both(given)
    row = 6 + 1 + 3
    wanted = before["embeddings"][row] + before["features"][before["feature_rows"][row]]
    tolerance = BFLOAT16_TOL if dtype == torch.bfloat16 else 0.0
    torch.testing.assert_close(given["inputs_embeds"][row], wanted, rtol=tolerance, atol=0.0)
    assert (given["inputs_embeds"][64:] == POISON).all(), "rows of nobody"


def test_what_is_carried_is_read_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first row reads what its slot carries, and the last kept row takes its place."""
    monkeypatch.setattr(launch, "BLOCK_ROWS", 2)
    given = arguments([5])
    given["feature_rows"][0] = given["feature_rows"][4] = 12
    old, new = given["features"][12].clone(), given["features"][int(given["carries"][0, 0])].clone()
    run_both(given)
    for row in (0, 4):
        assert torch.equal(given["inputs_embeds"][row], given["embeddings"][row] + old)
    assert torch.equal(given["features"][12], new)


def test_no_row_beyond_the_embeddings_is_written() -> None:
    given = arguments([4, 4], num_rows=6)
    run_both(given)
    assert (given["inputs_embeds"][6:] == POISON).all()


def test_a_batch_padded_to_a_graph_carries_nothing() -> None:
    given = arguments([4, 4])
    given["carries"][1] = 22
    before = given["features"][13].clone()
    run_both(given)
    assert torch.equal(given["features"][13], before)
    assert not given["features"][22].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(23, 41)}, r"features must be 40 wide, .* got \(23, 41\)"),
        ({"inputs_embeds": torch.zeros(7, 40)}, r"embeddings has 8 rows, .* got \(7, 40\)"),
        ({"feature_rows": torch.zeros(7, dtype=torch.int32)}, r"embeddings has 8 rows, .* \(7,\)"),
        ({"carries": torch.zeros(1, 2, dtype=torch.int32)}, r"carries must be contiguous \[2, 2\]; got \(1, 2\)"),
        ({"embeddings": torch.zeros(40, 8).T}, r"embeddings must be 40 wide.*contiguous"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        add_target_features(**arguments([4, 4]) | change)
