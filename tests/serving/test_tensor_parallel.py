"""Two CPU processes as tensor-parallel ranks: the draft as parallel as the target, or whole on every rank."""

from pathlib import Path
from typing import Any

import pytest
from engine import run_scenario

pytestmark = pytest.mark.engine

# Forked workers inherit the interpreter's stand-in backend; Inductor would take that for a real one.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_WORKER_MULTIPROC_METHOD": "fork",
}


@pytest.mark.parametrize(
    ("runner", "spec"),
    [
        pytest.param("v1", {}, id="V1, draft follows", marks=pytest.mark.slow),
        pytest.param("v2", {}, id="V2, draft follows"),
        pytest.param("v2", {"draft_tensor_parallel_size": 1}, id="V2, draft whole on every rank"),
    ],
)
def test_two_ranks_draft_as_one(tiny_pair: tuple[Path, Path], runner: str, spec: dict[str, Any]) -> None:
    target, draft = tiny_pair
    arguments = {"num_drafts": 4, "prompt_lengths": [5, 33, 60], "max_tokens": 12, "target": target, "draft": draft}
    options = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    two = run_scenario(
        "scenarios:draft_only", runner=runner, environment=ENVIRONMENT, spec=spec, options=options, **arguments
    )
    one = run_scenario("scenarios:compare", runner="v1", **arguments)
    assert two["pard"] == one["plain"]
    assert two["counts"] == one["counts"]
    assert two["counts"]["num_accepted_tokens"] > 0
