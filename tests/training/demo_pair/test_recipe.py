"""The recipe's runs are such that training takes them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from vllm_pard.demo import demo_path
from vllm_pard.demo.text.sample import MASK, SPECIAL_TOKENS
from vllm_pard.training.demo_pair.recipe import DemoPairConfig, RunConfig, smoke_config
from vllm_pard.training.options.arguments import training_arguments

RUNS = ("target", "draft_ar", "draft_text", "draft", "draft_pard2")


@pytest.mark.parametrize("config", [DemoPairConfig(), smoke_config()], ids=["whole", "smoke"])
@pytest.mark.parametrize("name", RUNS)
def test_a_stage_is_a_run_of_the_trainer(config: DemoPairConfig, name: str, tmp_path: Path) -> None:
    stage: RunConfig = getattr(config, name)
    start = {"draft": "a"} if name.startswith("draft") and name != "draft_ar" else {"new_model": "a"}
    if name == "draft_pard2":
        start["target"] = "b"
    run = stage.train_config(tmp_path / name, tmp_path / "documents.jsonl", **start)
    arguments = training_arguments(run)
    assert (arguments.max_steps, arguments.learning_rate) == (stage.num_steps, stage.learning_rate)
    assert arguments.max_steps % arguments.save_steps == 0  # else the last steps are never measured
    assert run.cod.num_depths == (8 if "draft" in start else 1)
    assert run.mask_token_id == SPECIAL_TOKENS.index(MASK)
    assert (run.data.max_length, run.seed, run.dtype) == (stage.max_length, stage.seed, "float32")


def test_all_stages_draw_from_seeds_of_their_own() -> None:
    config = DemoPairConfig()
    seeds = [getattr(config, name).seed for name in (*RUNS, "text", "answers", "evaluation")]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("stage", RUNS)
def test_the_shipped_models_were_trained_by_it(stage: str) -> None:
    receipts = json.loads((demo_path("target").parent / "receipt.json").read_text())
    (config,) = [receipt["config"] for receipt in receipts if receipt["stage"] == stage]
    run: RunConfig = getattr(DemoPairConfig(), stage)
    start = {name: config[name] for name in ("draft", "new_model", "target")}
    wanted = asdict(run.train_config(Path(stage), Path(config["data"]["sources"][0]["path"]), **start))
    assert config == json.loads(json.dumps(wanted))
