"""PARD-2 on the real V1 runner, dependent on its target: rows as defined, outputs as without a draft."""

from pathlib import Path
from typing import Any

import pytest
from engine import scenarios_of
from pard2_draft import save_pard2_draft

pytestmark = pytest.mark.engine

INPUT_TOL = 1e-5  # fp32, sums in another order; a wrong feature is a hundred times as far away


@pytest.fixture(scope="module")
def run(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    draft = save_pard2_draft(tmp_path_factory.mktemp("pard2") / "draft", tiny_pair[1])
    return scenarios_of("scenarios_pard2", (tiny_pair[0], draft), runner="v1")


def test_rows_of_mixed_batches(run: Any) -> None:
    found = run("rows_on_v1", forgets=False)
    assert found["num_tokens"] > 250
    assert found["num_masks"] > 50
    assert found["tokens"] < INPUT_TOL
    assert found["masks"] < INPUT_TOL


def test_a_forgotten_feature_is_seen(run: Any) -> None:
    """Control: the first row of every step but the first reads what the step before has left."""
    assert run("rows_on_v1", forgets=True)["tokens"] > 100 * INPUT_TOL


def test_one_hundred_prompts_are_lossless(run: Any) -> None:
    result = run("scenarios_v1:many_prompts", num_prompts=100, num_drafts=6)
    assert result["pard"] == result["plain"]
    assert 0 < result["counts"]["num_accepted_tokens"] < result["counts"]["num_draft_tokens"]


def test_both_runners_accept_the_same(run: Any) -> None:
    """Two implementations of features: the same drafts."""
    arguments = {"num_drafts": 4, "prompt_lengths": [1, 9, 40, 77], "max_tokens": 16}
    v1, v2 = (run("scenarios:compare", runner=runner, **arguments) for runner in ("v1", "v2"))
    assert v1["pard"] == v2["pard"] == v1["plain"]
    assert v1["counts"] == v2["counts"]
