"""The real pair's program: its commands exist, and its rows are what the commands' results say."""

import json
import sys
from pathlib import Path
from typing import Any

import doc_parse
import pytest
import real_pair
from training_world import save_questions

COUNTS = {"num_drafts": 4, "num_draft_tokens": 20, "num_accepted_tokens": 6, "accepted_per_position": [3, 2, 1, 0, 0]}
NOTHING = {"num_drafts": 0, "num_draft_tokens": 0, "num_accepted_tokens": 0, "accepted_per_position": []}
SPEEDS = {"none": 40.0, "draft_model": 30.0, "pard": 50.0, "pard+independent": 45.0}


class Commands:
    """Stands in for vllm-pard: each command's own parser reads it, and its result is made up."""

    def __init__(self) -> None:
        self.given: list[list[str]] = []

    def __call__(self, *words: object) -> None:
        asked = [str(word) for word in words]
        doc_parse.check_vllm_pard(asked)
        self.given.append(asked)
        getattr(self, asked[0])(asked)

    def generate(self, asked: list[str]) -> None:
        save_questions(Path(asked[asked.index("--output") + 1]), 3)

    def train(self, asked: list[str]) -> None:
        folder = Path(asked[asked.index("--output") + 1])
        folder.mkdir()
        (folder / "receipt.json").write_text(json.dumps({"training_seconds": 7.5}))

    def evaluate(self, asked: list[str]) -> None:
        modes = ["dependent", "independent"] if "both" in asked else ["independent"]
        tasks = [asked[place + 1] for place, word in enumerate(asked) if word == "--prompts"]
        rows = [
            {
                "task": Path(task).name,
                "mode": mode,
                "num_speculative_tokens": 5,
                "acceptance_length": 2.5 if mode == "dependent" else 2.0,
                "acceptance_by_position": [0.75, 0.5, 0.25, 0.0, 0.0],
            }
            for task in tasks
            for mode in modes
        ]
        Path(asked[asked.index("--output") + 1]).write_text(json.dumps({"rows": rows}))

    def bench(self, asked: list[str]) -> None:
        results = [
            {
                "method": method,
                "runs": [
                    {
                        "num_tokens": 100 * factor,
                        "seconds": 100 / SPEEDS[method.partition("=")[0]],
                        "stats": NOTHING if method == "none" else COUNTS,
                    }
                    for factor in (1, 2, 1)
                ],
            }
            for method in asked[asked.index("--methods") + 1].split(",")
        ]
        checks = [
            {"label": each["method"], "num_requests": 16, "num_equal": 15}
            for each in results
            if each["method"] != "none"
        ]
        result = {"results": results, "verification": checks}
        Path(asked[asked.index("--json") + 1]).write_text(json.dumps(result))


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    commands = Commands()
    monkeypatch.setattr(real_pair, "_pard", commands)
    monkeypatch.setattr(real_pair, "make_target", lambda folder: "made up")
    return commands


def run(monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, Any]:
    train, *tests = (save_questions(folder / f"{name}.jsonl", 3) for name in ("train", "gsm8k", "humaneval"))
    words = ["--train", str(train), "--test", *map(str, tests), "--work", str(folder / "work")]
    monkeypatch.setattr(sys, "argv", ["real_pair.py", *words, "--json", str(folder / "result.json")])
    real_pair.main()
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    del result["conditions"]["time"]
    return result


def test_rows_are_those_of_the_results(commands: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = run(monkeypatch, tmp_path)
    assert [words[0] for words in commands.given] == ["generate", *["train"] * 3, *["evaluate"] * 2, *["bench"] * 2]
    rows = {(row["method"], row["task"], "speed_up" in row): row for row in result["rows"]}
    assert len(rows) == len(result["rows"]) == 3 * 2 + 5 * 2
    assert rows["pard2, dependent", "gsm8k", False]["acceptance_length"] == 2.5
    assert rows["pard", "humaneval", False]["training_seconds"] == 7.5
    served = rows["pard", "gsm8k", True]
    assert (served["tokens_per_second"], served["speed_up"]) == (50.0, 1.25)
    assert (served["acceptance_length"], served["num_outputs_that_differ"]) == (2.5, 1)
    assert rows["pard2, dependent", "gsm8k", True]["tokens_per_second"] == 50.0
    assert rows["pard2, independent", "gsm8k", True]["tokens_per_second"] == 45.0
    assert rows["next token", "humaneval", True]["speed_up"] == 0.75
    assert rows["none", "gsm8k", True]["acceptance_length"] == 1.0
    assert result["conditions"]["target"] == "made up"
    assert result["conditions"]["seconds"].keys() == {"answers", "next_token", "pard", "pard2"}
    assert result["conditions"]["num_questions"] == 3


def test_what_was_measured_is_not_measured_again(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = run(monkeypatch, tmp_path)
    commands.given.clear()
    commands.train = lambda asked: None  # type: ignore[method-assign]  # it finds its own finished run
    assert run(monkeypatch, tmp_path) == first, "seconds included"
    assert {words[0] for words in commands.given} == {"generate", "train"}
