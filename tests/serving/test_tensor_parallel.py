"""Two CPU processes as tensor-parallel ranks: the draft as parallel as the target, or whole on every rank."""

from pathlib import Path
from typing import Any

import pytest
from engine import run_scenario
from pard2_draft import save_pard2_draft
from tiny_models import sharpen

pytestmark = pytest.mark.engine

# Forked workers inherit the interpreter's stand-in backend; Inductor would take that for a real one.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_WORKER_MULTIPROC_METHOD": "fork",
}


WHOLE = {"draft_tensor_parallel_size": 1}


@pytest.mark.parametrize(
    ("runner", "spec", "is_pard2"),
    [
        pytest.param("v1", {}, False, id="V1, draft follows", marks=pytest.mark.slow),
        pytest.param("v2", {}, False, id="V2, draft follows", marks=pytest.mark.slow),
        pytest.param("v2", WHOLE, False, id="V2, draft whole on every rank"),
        pytest.param("v2", {}, True, id="V2, PARD-2, draft follows"),
        pytest.param("v2", WHOLE, True, id="V2, PARD-2, draft whole on every rank", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_draft_as_one(
    tiny_pair: tuple[Path, Path], tmp_path: Path, runner: str, spec: dict[str, Any], is_pard2: bool
) -> None:
    target, draft = tiny_pair
    if is_pard2:  # dependent: the target's states are whole on each rank
        draft = save_pard2_draft(tmp_path / "draft", draft)
    arguments = {"num_drafts": 4, "prompt_lengths": [5, 33, 60], "max_tokens": 12, "target": target, "draft": draft}
    options = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    two = run_scenario(
        "scenarios:draft_only", runner=runner, environment=ENVIRONMENT, spec=spec, options=options, **arguments
    )
    one = run_scenario("scenarios:compare", runner="v1", **arguments)
    assert two["pard"] == one["plain"]
    assert two["counts"] == one["counts"]
    assert two["counts"]["num_accepted_tokens"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("spec", [{}, WHOLE], ids=["draft follows", "draft whole on every rank"])
def test_two_ranks_draft_the_trees_of_one(tiny_pair: tuple[Path, Path], tmp_path: Path, spec: dict[str, Any]) -> None:
    """Ranks send their best tokens, and agree on what is made of them."""
    target, draft = tiny_pair[0], sharpen(tiny_pair[1], tmp_path / "draft")
    arguments = {"num_drafts": 4, "prompt_lengths": [5, 33, 60], "max_tokens": 12, "target": target, "draft": draft}
    parallel = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    one, two = (
        run_scenario(
            "scenarios:draft_only",
            runner="v2-flash",
            environment=ENVIRONMENT,
            spec=spec | {"tree": {"nodes": 9}},
            options=options,
            **arguments,
        )
        for options in ({}, parallel)
    )
    assert two["pard"] == one["pard"] == run_scenario("scenarios:compare", runner="v1", **arguments)["plain"]
    assert two["counts"] == one["counts"]
    assert two["counts"]["num_accepted_tokens_per_pos"][1] > 0
