"""The ablations at toy size: every run is made, and what is said of them follows from their receipts."""

import json
import sys
from pathlib import Path
from typing import Any

import ablations
import pytest
import torch
from training_world import save_questions, save_target

from vllm_pard.training.options.config import CodConfig

SMALL = ["--layers", "1", "--draft-vocab", "200", "--depths", "3", "--max-length", "96", "--batch-size", "2"]
SHORT = ["--start-steps", "2", "--steps", "4", "--evaluations", "2", "--held-out", "8"]


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, what: str, *more: str) -> dict[str, Any]:
    target, answers = save_target(folder / "target"), save_questions(folder / "questions.jsonl")
    places = ["--target", str(target), "--answers", str(answers), "--work", str(folder / "runs")]
    words = ["ablations.py", what, *places, *SMALL, *SHORT, "--feature-layers", "[-1, -2]", "--seeds", "[0]", *more]
    monkeypatch.setattr(sys, "argv", [*words, "--json", str(folder / "result.json"), "--plot", str(folder / "cod.png")])
    ablations.main()
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def test_cod(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = run(monkeypatch, tmp_path, "cod")
    rows = {(row["method"], row["num_rows"]) for row in result["rows"]}
    assert len(rows) == len(result["rows"]) == 6
    first = {method: min(count for name, count in rows if name == method) for method, _ in rows}
    assert first["all masks"] > first["cod"]
    assert first["random drops"] == pytest.approx(first["cod"], rel=0.1)
    assert result["summary"][0]["all_masks_to_cod"].keys() == {"num_rows", "seconds"}
    assert (tmp_path / "cod.png").stat().st_size > 1000
    both = run(monkeypatch, tmp_path, "cod", "--seeds", "[1]")
    assert [row["seed"] for row in both["rows"]] == [0] * 6 + [1] * 6
    assert both["rows"][:6] == result["rows"]
    assert [each["options"]["seeds"] for each in both["conditions"]] == [[0], [1]]
    assert [each["seed"] for each in both["summary"]] == [0, 1]
    with pytest.raises(SystemExit, match="was measured with another depths: give another --json"):
        run(monkeypatch, tmp_path, "cod", "--seeds", "[2]", "--depths", "4")


@pytest.mark.slow
def test_losses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = run(monkeypatch, tmp_path, "losses")
    assert len(result["rows"]) == len(ablations.LOSSES) + 2 * len(ablations.DROPOUTS)
    assert {row["mode"] for row in result["rows"]} == {"pard", "dependent", "independent"}
    assert all(row["acceptance_length"] >= 1 for row in result["rows"])


def test_broken_chains_are_broken() -> None:
    length = 400
    item = {
        "tokens": torch.arange(length) % 50,
        "documents": torch.zeros(length, dtype=torch.int64),
        "is_trained": torch.arange(length) > 0,
        "draw": 0,
    }
    cod = CodConfig(num_depths=4, retention=1, min_retention=1)
    rows = ablations.BrokenChains(cod=cod, seed=0, vocab_size=50)([item])["rows"]
    kept = set(zip(rows["anchors"].tolist(), rows["depths"].tolist(), strict=True))
    without = [(n, i) for n, i in kept if i > 1 and (n, i - 1) not in kept]
    assert len(without) > 100
    per_depth = [sum(depth == i for _, depth in kept) for i in range(4)]
    assert per_depth == pytest.approx([length, 0.7 * length, 0.49 * length, 0.343 * length], abs=40)


def test_cost_is_read_off_a_curve() -> None:
    curve = [
        {"num_rows": 100, "acceptance_length_everywhere": 2.0},
        {"num_rows": 300, "acceptance_length_everywhere": 3.0},
    ]
    assert ablations.cost_to_reach(curve, 2.5, "num_rows") == 200
    assert ablations.cost_to_reach(curve, 1.5, "num_rows") == 50
    assert ablations.cost_to_reach(curve, 3.5, "num_rows") is None
