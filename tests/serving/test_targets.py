"""Targets that mix kinds of attention, on both model runners: the tokens of plain vLLM."""

from pathlib import Path
from typing import Any

import pytest
from engine import run_scenario
from target_kinds import save_draft, save_draft_of_its_kind, save_target

pytestmark = pytest.mark.engine

Pair = dict[str, Path]
# Kind of target, and K/V heads of a plain draft; None is a draft that mixes kinds of attention as its target does.
PAIRS: dict[str, tuple[str, int | None]] = {
    "olmo3, 1 K/V head": ("olmo3", 1),
    "olmo3, 2 K/V heads": ("olmo3", 2),
    "gemma2": ("gemma2", 1),
    "gemma3": ("gemma3", 1),
    "gemma3, a draft of its kind": ("gemma3", None),
}
SLOW_ON_V1 = {"olmo3, 2 K/V heads", "gemma2"}
SLOW_ON_V2 = {"olmo3, 1 K/V head", "olmo3, 2 K/V heads", "gemma2", "gemma3"}


def rows(slow: set[str]) -> list[Any]:
    return [
        pytest.param(pair, id=name, marks=[pytest.mark.slow] if name in slow else []) for name, pair in PAIRS.items()
    ]


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    kind, num_kv_heads = request.param
    folder = tmp_path / "draft"
    return {
        "target": save_target(kind, tmp_path / "target"),
        "draft": save_draft(folder, num_kv_heads=num_kv_heads)
        if num_kv_heads
        else save_draft_of_its_kind(kind, folder),
    }


@pytest.mark.parametrize("pair", rows(SLOW_ON_V1), indirect=True)
def test_v1(pair: Pair) -> None:
    """Each step drafts what it drafts where one K/V cache group holds all layers."""
    result = run_scenario(
        "scenarios_v1:kv_cache_groups", runner="v1", **pair, prompt_lengths=[3, 33, 50, 75], max_tokens=30
    )
    assert result["several"]["num_groups"] > result["one"]["num_groups"] == 1
    assert result["several"]["tokens"] == result["plain"]
    assert result["several"]["drafts"] == result["one"]["drafts"]
    assert len({token for tokens in result["plain"] for token in tokens}) > 20, "a target that says something"


@pytest.mark.parametrize("pair", rows(SLOW_ON_V2), indirect=True)
def test_v2(pair: Pair) -> None:
    """As many drafts are accepted as where one K/V cache group holds all layers."""
    arguments = {"runner": "v2", **pair, "num_drafts": 4, "prompt_lengths": [3, 33, 75], "max_tokens": 16}
    several = run_scenario("scenarios:compare", **arguments)
    one = run_scenario("scenarios:draft_only", options={"disable_hybrid_kv_cache_manager": True}, **arguments)
    assert several["pard"] == several["plain"] == one["pard"]
    assert several["counts"] == one["counts"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["olmo3", "gemma2", "gemma3"])
def test_trees(kind: str, tmp_path: Path) -> None:
    """Windows count positions, of which siblings share one, and each K/V cache group moves its own kept rows."""
    window = 64  # as many rows as a tree may have
    models = {
        "target": save_target(kind, tmp_path / "target", window=window),
        "draft": save_draft_of_its_kind(kind, tmp_path / "draft", window=window),
    }

    def run(**mistake: str) -> Any:
        return run_scenario(
            "scenarios_tree:with_trees", runner="v2-flash", **models, chain="scenarios:compare", num_nodes=20,
            num_drafts=4, prompt_lengths=[3, 33, 58, 75, 90], max_tokens=30, **mistake,
        )  # fmt: skip

    result = run()
    assert result["pard"] == result["plain"]
    assert result["counts"]["num_accepted_tokens"] > 0
    wrong = run(mistake="kept rows stay where they are")
    assert wrong["pard"] != wrong["plain"]
