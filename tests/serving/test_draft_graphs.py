"""Draft steps from CUDA graphs, simulated by replaying what a capture ran (tests/support/recorded_graph.py)."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from engine import run_scenario

pytestmark = pytest.mark.engine

OURS = {"attention_backend": "CUSTOM"}
each_attention = pytest.mark.parametrize(
    ("runner", "spec"),
    [
        pytest.param("v2-triton", {}, id="Triton attention", marks=pytest.mark.slow),
        pytest.param("v2-flash", {}, id="FlashAttention", marks=pytest.mark.slow),
        pytest.param("v2-flash", OURS, id="our attention on FlashAttention"),
    ],
)


@pytest.fixture
def run(tiny_pair: tuple[Path, Path], newest_vllm: dict[str, str]) -> Any:
    target, draft = tiny_pair
    return partial(
        run_scenario, "scenarios_v2:graphs", environment=newest_vllm, target=target, draft=draft, num_drafts=4
    )


def replayed(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for step in result["steps"] if step["replays"]]


@each_attention
def test_graphs_draft_as_eager_steps(run: Any, runner: str, spec: dict[str, Any]) -> None:
    """Sampled with draft probabilities: seeds, temperatures and cached logits are read where the graph expects them."""
    result = run(runner=runner, spec=spec | {"draft_sample_method": "probabilistic"}, temperature=0.7)
    assert result["graphs"] == result["eager"]
    assert result["counts"] == result["eager_counts"]
    assert 0 < result["counts"]["num_accepted_tokens"] < result["counts"]["num_draft_tokens"]
    steps = replayed(result)
    assert sum(result["replays"].values()) == len(steps) >= 8
    assert {step["requests"] for step in steps if not step["rows"]} >= {1, 3, 4}, "three are padded to four"
    mixed = [step for step in steps if step["rows"]]
    assert mixed, "decodes beside a prefill"
    assert all(min(step["rows"][0]) > 8 for step in mixed), "a graph drafts for the decodes, the prefill is eager"
    assert all(step["rows"] or step["places"] for step in result["steps"] if max(step["queries"]) > 8)


@each_attention
def test_prompts_in_places_of_decodes(run: Any, runner: str, spec: dict[str, Any]) -> None:
    """With room for 16 requests of 8 rows there is room for four, and for chunks of 27 tokens beside them."""
    spec = spec | {"draft_sample_method": "probabilistic"}
    result = run(runner=runner, spec=spec, temperature=0.7, most=16, chunk=27)
    assert result["graphs"] == result["eager"]
    assert result["counts"] == result["eager_counts"]
    assert 0 < result["counts"]["num_accepted_tokens"] < result["counts"]["num_draft_tokens"]
    assert max(result["differences"]) < 1e-4
    spread = [step for step in result["steps"] if step["places"]]
    assert any(0 < step["prefills"] < step["requests"] for step in spread), "decodes beside a prompt"
    assert any(step["chunks"] for step in spread), "a part of a prompt"
    assert any(step["requests"] < sum(step["places"]) < step["replays"][0] for step in spread), "padding behind"
    assert all(max(step["places"]) > 1 for step in spread)
    ends = {number for step in spread if step["prefills"] for number in step["queries"][-step["prefills"] :]}
    assert ends & {6, 13}, "of so many tokens, the bonus and three masks the last masks are in another place"
    assert all(not step["rows"] and len(step["replays"]) == 1 for step in spread)


def test_prompts_in_pieces(tiny_pair: tuple[Path, Path], newest_vllm: dict[str, str]) -> None:
    """A prompt shares a forward with the decodes where a piecewise graph has room for all; else it gets its own."""
    target, draft = tiny_pair
    result = run_scenario(
        "scenarios_draft:pieces", runner="v2-triton", environment=newest_vllm, target=target, draft=draft
    )
    assert result["graphs"] == result["eager"]
    assert result["counts"] == result["eager_counts"]
    unexpected = [
        (num_rows, mode)
        for num_rows, mode in result["forwards"]
        if (num_rows not in (10, 32, 64) if mode == "PIECEWISE" else num_rows <= 64)
    ]
    assert unexpected == []
    mixed = [step for step in result["steps"] if 0 < step["prefills"] < step["requests"]]
    together = [step for step in mixed if not step["replays"]]
    apart = [step for step in mixed if step["replays"]]
    assert together
    assert all(sum(step["rows"][0]) <= 64 for step in together)
    assert apart
    assert all(8 * step["replays"][0] + sum(step["rows"][0]) > 64 for step in apart)
    assert all(step["replays"] for step in result["steps"] if not step["prefills"] and step["num_drafts"])


@pytest.mark.parametrize(("backend", "has_graphs"), [("ThresholdBackend", False), ("LyingBackend", True)])
def test_a_backend_that_cannot_replay(
    tiny_pair: tuple[Path, Path], newest_vllm: dict[str, str], backend: str, has_graphs: bool
) -> None:
    """No graph where 2K rows are a prefill; metadata rebuilt where the refresh does nothing. Acceptance stays."""
    target, draft = tiny_pair
    result = run_scenario(
        "scenarios_draft:unfit_graphs", runner="v2-triton", environment=newest_vllm, target=target, draft=draft,
        backend=backend,
    )  # fmt: skip
    assert result["graphs"] == result["eager"]
    assert result["counts"] == result["eager_counts"]
    assert result["counts"]["num_accepted_tokens"] > 0
    assert (result["replays"] > 0) == has_graphs
    assert any(sum(places) > len(places) > 1 for places in result["places"]) == has_graphs, "prompts beside decodes"
    assert not result["refreshes"]


def test_a_graph_for_each_k(run: Any) -> None:
    """K is 4 alone, 2 for two and three requests, 0 for four."""
    schedule = {"num_speculative_tokens_per_batch_size": [[1, 1, 4], [2, 3, 2], [4, 8, 0]]}
    result = run(runner="v2-triton", spec=schedule | OURS, temperature=0)
    assert result["graphs"] == result["eager"]
    assert result["counts"] == result["eager_counts"]
    assert set(result["replays"]) == {"1 x 8", "2 x 4", "4 x 4"}
    assert all(result["replays"][shape] > 0 for shape in ("1 x 8", "4 x 4"))
    steps = replayed(result)
    assert sum(result["replays"].values()) == len(steps)
    eager = [step for step in result["steps"] if step["rows"] and not step["prefills"]]
    assert eager, "the step that catches up with skipped ones does not fit a graph"


@pytest.mark.parametrize(
    ("num_drafts", "spec", "sizes", "widths"),
    [
        pytest.param("auto", {}, (1, 2, 4), (4, 8, 16), id="every length that may be chosen"),
        pytest.param(6, {"tree": "auto"}, (1, 2, 3, 4), (12,), id="trees of any size are as deep"),
        pytest.param(4, {"tree": {"nodes": 20}}, (1, 2, 3, 4), (8,), id="trees"),
    ],
)
def test_which_graphs_are_planned(
    tiny_pair: tuple[Path, Path],
    newest_vllm: dict[str, str],
    num_drafts: Any,
    spec: dict[str, Any],
    sizes: tuple[int, ...],
    widths: tuple[int, ...],
) -> None:
    """For each batch size each number of rows that a step can have; as many rows as a tree has are more requests."""
    target, draft = tiny_pair
    planned = run_scenario(
        "scenarios_draft:planned_graphs", runner="v2-flash", environment=newest_vllm, target=target, draft=draft,
        num_drafts=num_drafts, spec=spec,
    )  # fmt: skip
    assert planned == [[size, width] for size in sizes for width in widths]
