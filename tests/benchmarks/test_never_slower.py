"""The program that asks whether drafting is ever slower: its command exists, and its rows are what the results say."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import never_slower
import pytest
from fake_bench import fake_bench

SPEEDS = {"none": 100, "pard:2": 120, "pard:4": 140, "pard:8": 150, "pard+auto:8": 144}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setattr(never_slower, "subprocess", SimpleNamespace(run=fake_bench(lambda place, label: SPEEDS[label])))

    def run(*words: str) -> list[dict[str, Any]]:
        result = tmp_path / "result.json"
        monkeypatch.setattr(
            sys, "argv", ["never_slower.py", "--work", str(tmp_path / "work"), "--json", str(result), *words]
        )
        never_slower.main()
        found: list[dict[str, Any]] = json.loads(result.read_text())["rows"]
        return found

    return run


def test_a_row_for_each_pair_concurrency_and_method(run: Any) -> None:
    assert len(run()) == 4 * 5
    rows = run("--pair", "291M", "target", "draft")
    found = {(row["pair"], row["concurrency"], row["method"]): row["ratio_to_none"] for row in rows}
    assert len(found) == len(rows) == 2 * 4 * 5, "the other pair's are kept"
    assert found["291M", 16, "pard+auto:8"] == 1.44
    assert found["demo", 1, "none"] == 1.0


def test_a_row_says_of_which_commit_it_is(run: Any, tmp_path: Path) -> None:
    """A load's result that is there already is not measured again."""
    run()
    before = tmp_path / "work" / "demo_4.json"
    before.write_text(before.read_text().replace("made up", "older"))
    found = {row["concurrency"]: row["commit"] for row in run()}
    assert found == {1: "older", 4: "older", 16: "made up", 32: "made up"}


def test_where_it_is_slower_is_told(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    assert "never slower" in capsys.readouterr().out
    monkeypatch.setitem(SPEEDS, "pard+auto:8", 97)
    run("--pair", "291M", "target", "draft")
    assert "291M, 4 at a time: 0.97x none, 0.65x the best" in capsys.readouterr().out
