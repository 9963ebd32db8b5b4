"""The program of PARD-2's table: its command exists, and its rows are what the command's results say."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pard2
import pytest
import training_tables
from fake_bench import fake_bench


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    monkeypatch.setattr(pard2, "subprocess", SimpleNamespace(run=fake_bench(lambda place, label: 10 * (place + 1))))
    monkeypatch.setattr(pard2, "demo_path", lambda name: Path("demo") / name)
    words = ["--real-pair", tmp_path / "real", "--test", tmp_path / "gsm8k.jsonl", "--work", tmp_path / "work"]
    monkeypatch.setattr(sys, "argv", ["pard2.py", *map(str, words), "--json", str(tmp_path / "result.json")])
    pard2.main()
    result: list[dict[str, Any]] = json.loads((tmp_path / "result.json").read_text())["rows"]
    return result


def test_a_row_for_each_pair_task_method_mode_and_k(rows: list[dict[str, Any]]) -> None:
    keys = ("pair", "task", "method", "mode", "num_speculative_tokens")
    found = {tuple(row[key] for key in keys): row for row in rows}
    assert len(found) == len(rows) == 3 * 8
    assert found["demo", "demo:unseen_code", "none", None, 0]["tokens_per_second"] == 10.0
    assert found["demo", "demo:unseen_code", "pard2", "dependent", 15]["speed_up"] == 8.0
    assert found["real", "gsm8k", "pard2", "independent", 5]["acceptance_length"] == 2.0
    assert {row["pair"] for row in rows} == {"demo", "real"}


def test_each_method_gets_its_own_draft(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pard2, "demo_path", lambda name: Path("demo") / name)
    (question,) = [q for q in pard2.questions(tmp_path, [tmp_path / "gsm8k.jsonl"]) if q.pair == "real"]
    served = [method for key, method in question.methods if key["num_speculative_tokens"] in (0, 5)]
    drafts = {name: tmp_path / name for name in ("next_token", "pard", "pard2")}
    assert served == [
        "none",
        f"draft_model={drafts['next_token']}:5",
        f"pard={drafts['pard']}:5",
        f"pard+independent={drafts['pard2']}:5",
        f"pard={drafts['pard2']}:5",
    ]


def test_gains_are_those_on_pard_with_the_same_k(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row["mode"] == "dependent" and row["pair"] == "real":
            row["acceptance_length"] = 2.5
    lines = training_tables.pard2_table({"rows": rows}).splitlines()
    titles = [title.strip() for title in lines[0].split("|")]
    assert titles[1:4] == ["draft", "K", "demo, unseen_word_problems"]
    real = titles.index("real, gsm8k")
    cells = {
        tuple(cell.strip() for cell in line.split("|")[1:3]): line.split("|")[real].strip() for line in lines[2:-2]
    }
    assert cells["PARD-2, dependent", "5"] == "2.50 (+25%)"
    assert cells["PARD-2, independent", "5"] == "2.00 (+0%)"
    assert (cells["PARD", "5"], cells["PARD", "8"]) == ("2.00", "")
