"""The model card says what the receipts say."""

from __future__ import annotations

import json
from typing import Any

from vllm_pard.demo import demo_path
from vllm_pard.training.demo_pair.card import model_card


def training(stage: str, num_parameters: int, loss: float, *devices: str) -> dict[str, Any]:
    return {
        "stage": stage,
        "config": {"cod": {"num_depths": 6}, "data": {"max_length": 321}},
        "environment": {"cpu": "a CPU", "num_threads": 5, "devices": list(devices)},
        "wall_time_s": 90,
        "result": {"num_parameters": num_parameters, "num_steps": 77, "loss_curve": [[1, 9.0], [77, loss]]},
    }


RECEIPTS = [
    {"stage": "text", "config": {}, "result": {"vocab_size": 1234}},
    training("target", 5_520_000, 0.25, "a GPU"),
    training("draft", 1_440_000, 0.75),
    {"stage": "answers", "config": {}, "result": {"num_questions": 432}},
    {
        "stage": "evaluation",
        "config": {"num_prompts": 8},
        "result": {
            "num_speculative_tokens": 6,
            "splits": {
                "code": {
                    "mean_acceptance_length": 4.321,
                    "mean_acceptance_length_independent": 4.25,
                    "mean_acceptance_length_dependent": 5.5,
                    "num_prompts": 8,
                    "num_exact": 2,
                    "num_final_line": 6,
                }
            },
        },
        "note": "A note.",
    },
]


def test_every_number_of_the_receipts_is_in_its_place() -> None:
    card = model_card(RECEIPTS)
    assert "A target of 5.5M parameters and a PARD draft of 1.4M" in card
    assert "COD training (PARD, arXiv 2504.18583), 6 depths" in card
    assert "1234 tokens" in card
    rows = ("| `target` | 77 | 0.250 | 1.5 | a GPU |", "| `draft` | 77 | 0.750 | 1.5 | 5 threads of a CPU |")
    assert "\n".join(rows) in card
    assert "trained on 432 greedy answers" in card
    assert "\nA note.\n" in card
    assert "8 held-out prompts per split, greedy, fp32, K = 6" in card
    assert "| code | 4.32 | 4.25 | 5.50 | 25% | 75% |" in card
    assert "Contexts up to 321 tokens" in card


def test_the_shipped_card_tells_of_the_shipped_receipt() -> None:
    folder = demo_path("target").parent
    card = (folder / "README.md").read_text()
    for split, counts in json.loads((folder / "receipt.json").read_text())[-1]["result"]["splits"].items():
        assert f"| {split} | {counts['mean_acceptance_length']:.2f} |" in card
