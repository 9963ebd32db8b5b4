"""A trimmed draft, and an lm_head in 8 bits, in real engines: other drafts, the same outputs."""

import json
from pathlib import Path
from typing import Any

import pytest
from engine import run_scenario

pytestmark = pytest.mark.engine

TOKEN_IDS = [i for i in range(320) if i % 4]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("vocabulary") / "ids.json"
    path.write_text(json.dumps(TOKEN_IDS))
    return {"draft_vocab": str(path)}


def check(result: dict[str, Any]) -> None:
    assert result["pard"] == result["plain"]
    assert set(result["drafted"]) <= set(TOKEN_IDS)
    assert {token for tokens in result["plain"] for token in tokens} - set(TOKEN_IDS), "the target knows no such limit"
    assert result["counts"]["num_accepted_tokens"] > 0


def test_both_runners_draft_the_same(tiny_pair: tuple[Path, Path], spec: dict[str, Any]) -> None:
    """V1 trims the logits; V2 reads only the rows of the lm_head, and keeps no logits."""
    target, draft = tiny_pair
    v1, v2 = (
        run_scenario("scenarios:trimmed", runner=runner, target=target, draft=draft, spec=spec)
        for runner in ("v1", "v2")
    )
    check(v1)
    check(v2)
    assert v1["counts"] == v2["counts"]


def test_logits_of_probabilistic_drafts(tiny_pair: tuple[Path, Path], spec: dict[str, Any]) -> None:
    target, draft = tiny_pair
    probabilistic = spec | {"draft_sample_method": "probabilistic"}
    check(run_scenario("scenarios:trimmed", runner="v2", target=target, draft=draft, spec=probabilistic))


def test_int8(tiny_pair: tuple[Path, Path], spec: dict[str, Any]) -> None:
    target, draft = tiny_pair
    arguments = {"target": target, "draft": draft, "spec": spec, "use_int8": True}
    check(run_scenario("scenarios:trimmed", runner="v2", **arguments))
