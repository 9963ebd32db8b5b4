"""The program of the trees' table, on a pair that decodes in seconds."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import trees


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    monkeypatch.setattr(trees, "DEMO_TASKS", ("demo:unseen_code",))
    monkeypatch.setattr(trees, "CHAINS", (4,))
    monkeypatch.setattr(trees, "TREES", (4, 24))
    monkeypatch.setattr(trees, "DEPTH", 8)
    words = ["--num-prompts", "4", "--max-tokens", "40", "--json", str(tmp_path / "result.json")]
    monkeypatch.setattr(sys, "argv", ["trees.py", *words])
    trees.main()
    result: list[dict[str, Any]] = json.loads((tmp_path / "result.json").read_text())["rows"]
    return result


def test_a_row_for_each_chain_and_tree_at_each_temperature(rows: list[dict[str, Any]]) -> None:
    keys = ("pair", "task", "method", "nodes", "num_speculative_tokens", "temperature")
    found = {tuple(row[key] for key in keys): row["acceptance_length"] for row in rows}
    assert len(found) == len(rows) == 3 * 2
    greedy = {nodes: length for (*_, nodes, _, temperature), length in found.items() if temperature == 0}
    assert greedy[24] > greedy[None] > 1


def test_the_real_pairs_drafts_are_asked_too(tmp_path: Path) -> None:
    for draft in ("pard", "pard2"):
        (tmp_path / draft).mkdir()
    found = trees.questions(tmp_path, [tmp_path / "gsm8k.jsonl"])
    assert [(question.pair, Path(question.draft).name) for question in found[2:]] == [
        ("real", "pard"),
        ("real, PARD-2", "pard2"),
    ]
