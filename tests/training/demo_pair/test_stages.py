"""The whole chain at toy sizes: interrupted, gone on with, finished, and run again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from vllm_pard.checkpoint import load_config, read_checkpoint
from vllm_pard.demo.text.corpus import EVALUATION_SPLITS
from vllm_pard.errors import PardError
from vllm_pard.target_proj import target_proj_for
from vllm_pard.training.demo_pair.__main__ import main
from vllm_pard.training.demo_pair.recipe import DemoPairConfig, TextConfig, smoke_config
from vllm_pard.training.demo_pair.stages import STAGES, make_demo_pair

MODELS = ("target", "draft_ar", "draft", "draft_pard2")


class Interrupt(Exception):
    """Ctrl-C."""


def make(root: Path, config: DemoPairConfig, stop_at: str | None = None) -> tuple[Path, list[str]]:
    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line)
        if stop_at is not None and line.startswith(stop_at):
            raise Interrupt

    return make_demo_pair(config, root, report), lines


@pytest.fixture(scope="module")
def config() -> DemoPairConfig:
    return smoke_config()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, config: DemoPairConfig) -> Path:
    return make(tmp_path_factory.mktemp("unbroken"), config)[0]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, config: DemoPairConfig) -> tuple[Path, list[str]]:
    root = tmp_path_factory.mktemp("interrupted")
    for stop_at in ("target: step 4 of 4, loss", "answers: started"):
        with pytest.raises(Interrupt):
            make(root, config, stop_at)
    return make(root, config)


def finished(lines: Sequence[str]) -> list[str]:
    return [line.partition(":")[0] for line in lines if line.endswith(": finished before")]


def test_what_was_interrupted_goes_on(interrupted: tuple[Path, list[str]]) -> None:
    lines = interrupted[1]
    assert finished(lines) == ["text", "target", "draft_ar", "draft_text"]
    assert lines[4] == "answers: started"


def test_an_interruption_changes_nothing(interrupted: tuple[Path, list[str]], unbroken: Path) -> None:
    for name in MODELS:
        broken, whole = (load_file(pair / name / "model.safetensors") for pair in (interrupted[0], unbroken))
        assert broken.keys() == whole.keys()
        assert all(torch.equal(broken[key], whole[key]) for key in whole)
    receipts = [json.loads((pair / "receipt.json").read_text()) for pair in (interrupted[0], unbroken)]
    assert receipts[0][-1]["result"] == receipts[1][-1]["result"]
    curves = [[stage["result"].get("loss_curve") for stage in receipt] for receipt in receipts]
    assert curves[0] == curves[1]
    assert [curve and len(curve) for curve in curves[0]] == [None, 2, 2, 2, None, 2, 2, None]


def test_a_finished_pair_is_not_made_again(unbroken: Path, config: DemoPairConfig) -> None:
    _, lines = make(unbroken.parent, config)
    assert finished(lines) == list(STAGES)


def test_the_models_are_what_engines_read(unbroken: Path) -> None:
    for name in MODELS:
        model = AutoModelForCausalLM.from_pretrained(unbroken / name)
        assert (model.config.vocab_size, model.config.eos_token_id) == (2048, 1)
        assert len(AutoTokenizer.from_pretrained(unbroken / name)) == 2048
        with safe_open(unbroken / name / "model.safetensors", "pt") as weights:
            assert {str(weights.get_tensor(key).dtype) for key in weights.keys()} == {"torch.bfloat16"}  # noqa: SIM118
    draft = read_checkpoint(str(unbroken / "draft"), load_config(str(unbroken / "draft")))
    assert (draft.mask_token_id, draft.num_speculative_tokens, draft.format) == (3, 8, "pard")
    folder = str(unbroken / "draft_pard2")
    pard2 = read_checkpoint(folder, load_config(folder))
    assert (pard2.mask_token_id, pard2.num_speculative_tokens, pard2.format) == (3, 8, "pard2")
    target = str(unbroken / "target")
    target_proj, why = target_proj_for(pard2, target, load_config(target))
    assert target_proj is not None, why
    assert (target_proj.weight.dtype, target_proj.features.target) == (torch.bfloat16, "target")
    for name in ("target", "draft_ar"):
        assert (
            not {"pard_token", "spd_type", "num_speculative_tokens_trained"} & load_config(str(unbroken / name)).keys()
        )
    assert [load_config(str(unbroken / name)).get("vllm_pard_demo") for name in MODELS] == [True, None, None, None]


def test_the_draft_goes_on_from_what_came_before(unbroken: Path) -> None:
    """Four steps from there move no weight far; from new weights all would be others."""
    before, after = (load_file(unbroken / name / "model.safetensors") for name in ("draft_ar", "draft"))
    key = "model.layers.0.mlp.up_proj.weight"
    similarity = torch.cosine_similarity(before[key].float().flatten(), after[key].float().flatten(), dim=0)
    assert similarity > 0.8
    assert not torch.equal(before[key], after[key])


def test_receipts_of_all_stages_are_joined_and_name_no_folder(unbroken: Path) -> None:
    text = (unbroken / "receipt.json").read_text()
    assert str(unbroken.parent) not in text
    receipts = json.loads(text)
    assert [receipt["stage"] for receipt in receipts] == list(STAGES)
    for receipt in receipts:
        assert receipt["environment"]["argv"][:3] == ["python", "-m", "vllm_pard.training.demo_pair"]
    by_name = {receipt["stage"]: receipt for receipt in receipts}
    assert by_name["draft"]["config"]["draft"] == "draft_text"
    assert by_name["draft"]["config"]["data"]["sources"][0]["path"] == "answers.jsonl"
    assert by_name["draft_text"]["config"]["draft"] == "draft_ar"
    assert by_name["draft_text"]["config"]["data"]["sources"][0]["path"] == "documents.jsonl"
    assert set(by_name["evaluation"]["result"]["splits"]) == set(EVALUATION_SPLITS)


def test_held_out_prompts_and_a_card_are_beside_the_models(unbroken: Path) -> None:
    assert {path.stem for path in (unbroken / "prompts").iterdir()} == set(EVALUATION_SPLITS)
    assert "| word_problems |" in (unbroken / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"text": TextConfig(num_documents=1999, num_tokenizer_questions=12_000)},
            "stage text in .*; it is of another",
        ),
        ({"draft_size": DemoPairConfig().draft_size}, "draft_ar.* was started with new_model .*llama-64-1-64"),
        ({"target": replace(smoke_config().target, num_steps=5)}, "was started with trainer.max_steps 4"),
        ({"answers": replace(smoke_config().answers, seed=9)}, "stage answers in .*; it is of another"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_changed_recipe_is_refused(unbroken: Path, config: DemoPairConfig, changes: dict, message: str) -> None:
    before = (unbroken / "receipt.json").read_bytes()
    with pytest.raises(PardError, match=message):
        make(unbroken.parent, replace(config, **changes))
    assert (unbroken / "receipt.json").read_bytes() == before


def test_a_changed_text_is_refused(unbroken: Path, config: DemoPairConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_pard.training.demo_pair.stages.chat_records", lambda config: [{"messages": []}])
    with pytest.raises(PardError, match="give another --output"):
        make(unbroken.parent, config)


def test_an_output_that_is_a_file_ends_with_a_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--smoke", "--threads", "1", "--output", str(tmp_path / "file")]) == 1
    assert "is a file; name a folder" in capsys.readouterr().err
    assert logging.is_progress_bar_enabled(), "others' bars are as they were"


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--threads", "0"], "--threads must be 1 or more; got 0"), (["--install"], "--install needs a trained pair")],
)
def test_wrong_options_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        main(["--smoke", *options, "--output", str(tmp_path / "pair")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "pair").exists()
