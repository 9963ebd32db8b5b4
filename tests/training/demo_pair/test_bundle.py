"""What the package ships: scores, receipts without folders, and how a bundle is installed."""

from __future__ import annotations

import json
from pathlib import Path

from vllm_pard.demo.text.sample import Sample
from vllm_pard.training.demo_pair.bundle import install, score, shipped_receipt
from vllm_pard.training.output.receipt import write_json


def test_answers_are_scored_as_a_whole_and_by_their_last_line() -> None:
    said = " 1. 2 + 2 = 4.\nThe answer is 4."
    samples = [
        Sample("a", "1. 2 + 2 = 4.\nThe answer is 4.", "x"),
        Sample("b", "1. 1 + 3 = 4.\nThe answer is 4.", "x"),
        Sample("c", "1. 2 + 2 = 4.\nThe answer is 5.", "x"),
    ]
    assert score(samples, [said] * 3) == {"num_prompts": 3, "num_exact": 1, "num_final_line": 2}


def test_a_training_receipt_is_shipped_as_a_stage(tmp_path: Path) -> None:
    (tmp_path / "draft").mkdir()
    write_json(
        tmp_path / "draft" / "receipt.json",
        {
            "config": {"output": "draft", "draft": "draft_text"},
            "environment": {"argv": ["vllm-pard", "train", "--install"], "cpu": "a CPU"},
            "training_seconds": 12.5,
            "num_parameters": 7,
            "num_steps": 4,
            "best_step": 2,
            "acceptance_length": 3.5,
            "data": "documents: 5",
            "log": [
                {"step": 2, "loss": 1.23456789},
                {"step": 2, "eval_acceptance_length": 3.5},
                {"step": 4, "loss": 0.5},
                {"step": 4, "train_runtime": 9.0},
            ],
            "mask_token_id": 3,
        },
    )
    assert shipped_receipt(tmp_path, "draft", "python -m pair") == {
        "stage": "draft",
        "config": {"output": "draft", "draft": "draft_text"},
        "environment": {"argv": ["python", "-m", "pair"], "cpu": "a CPU"},
        "wall_time_s": 12.5,
        "result": {
            "num_parameters": 7,
            "num_steps": 4,
            "best_step": 2,
            "acceptance_length": 3.5,
            "data": "documents: 5",
            "loss_curve": [[2, 1.23457], [4, 0.5]],
        },
    }


def test_other_stages_receipts_are_shipped_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    receipt = {"stage": "text", "config": {}, "result": {"vocab_size": 2048}}
    write_json(tmp_path / "text" / "receipt.json", receipt)
    assert shipped_receipt(tmp_path, "text", "python -m pair") == receipt


def test_installing_replaces_the_models_and_leaves_the_code(tmp_path: Path) -> None:
    bundle, package = tmp_path / "bundle", tmp_path / "demo"
    for folder, content in ((bundle, "new"), (package, "old")):
        (folder / "draft").mkdir(parents=True)
        (folder / "draft" / "config.json").write_text(json.dumps(content))
    (package / "__init__.py").write_text("code")
    install(bundle, package)
    assert json.loads((package / "draft" / "config.json").read_text()) == "new"
    assert (package / "__init__.py").read_text() == "code"
