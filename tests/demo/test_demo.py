"""The bundled pair: what the rest of the package relies on."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from safetensors import safe_open

from vllm_pard.demo import MODELS, SPLITS, demo_path, prompts
from vllm_pard.demo.text.corpus import EVALUATION_SPLITS, is_held_out
from vllm_pard.demo.text.sample import format_prompt
from vllm_pard.pard2 import read_features
from vllm_pard.target_proj import read_target_proj

MAX_MEGABYTES = {"target": 12.0, "draft": 2.4, "draft_pard2": 2.4, "draft_ar": 2.4}
TRAINED = ("word_problems", "arithmetic", "code")


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_bf16_and_small(name):
    weights = demo_path(name) / "model.safetensors"
    assert weights.stat().st_size <= MAX_MEGABYTES[name] * 1e6
    with safe_open(weights, "pt") as tensors:
        assert {str(tensors.get_tensor(key).dtype) for key in tensors.keys()} == {"torch.bfloat16"}  # noqa: SIM118


def test_only_the_parallel_drafts_are_pard_checkpoints():
    configs = {name: json.loads((demo_path(name) / "config.json").read_text()) for name in MODELS}
    for name, kind in (("draft", "pard"), ("draft_pard2", "pard2")):
        assert configs[name]["pard_token"] == 3 < configs[name]["vocab_size"]
        assert configs[name]["spd_type"] == kind
    assert "pard_token" not in configs["target"]
    assert "pard_token" not in configs["draft_ar"]
    assert {config["vocab_size"] for config in configs.values()} == {2048}


def test_the_projection_reads_three_states_of_the_target():
    folder = demo_path("draft_pard2")
    config = json.loads((folder / "config.json").read_text())
    target_proj = read_target_proj(str(folder), read_features(str(folder), config), config["hidden_size"])
    assert target_proj.weight.shape == (192, 3 * 256)


def test_the_tokenizers_are_one():
    assert len({(demo_path(name) / "tokenizer.json").read_bytes() for name in MODELS}) == 1


def test_splits_are_those_of_the_generators():
    assert set(SPLITS) == set(EVALUATION_SPLITS)


@pytest.mark.parametrize("split", SPLITS)
def test_prompts_are_held_out_and_formatted(split):
    rows = prompts(split)
    assert 64 <= len(rows) <= 128
    for row in rows:
        assert set(row) == {"prompt", "question", "answer", "family"}
        assert row["prompt"] == format_prompt(row["question"])
        assert is_held_out(row["question"])


def test_the_receipt_names_no_path_of_a_machine():
    text = (demo_path("target").parent / "receipt.json").read_text()
    assert not [word for word in ("/home/", "/root/", "/tmp/", "/work/", "/Users/") if word in text]
    evaluation = json.loads(text)[-1]
    assert evaluation["stage"] == "evaluation"


@pytest.fixture
def splits():
    receipt = json.loads((demo_path("target").parent / "receipt.json").read_text())
    return receipt[-1]["result"]["splits"]


@pytest.mark.parametrize("split", TRAINED)
def test_the_target_answers_and_its_drafts_are_good_but_not_perfect(splits, split):
    """A demo whose drafts are always right would promise too much."""
    assert splits[split]["num_final_line"] == splits[split]["num_prompts"]
    for draft in ("", "_dependent"):
        assert 4.0 <= splits[split][f"mean_acceptance_length{draft}"] <= 6.5


@pytest.mark.parametrize("split", ["word_problems", "arithmetic", "unseen_word_problems"])
def test_features_help(splits, split):
    lengths = [splits[split][f"mean_acceptance_length{draft}"] for draft in ("", "_independent", "_dependent")]
    pard, independent, dependent = lengths
    assert dependent >= 1.1 * pard > independent


def test_wrong_names_are_refused():
    with pytest.raises(ValueError, match=r"name must be one of .*got 'teacher'"):
        demo_path("teacher")
    with pytest.raises(ValueError, match=r"split must be one of .*got 'poems'"):
        prompts("poems")


def test_a_missing_model_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr("vllm_pard.demo._FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="train it with `make demo-pair ARGS=--install`"):
        demo_path("draft")


def test_importing_the_demo_imports_no_torch():
    code = "import vllm_pard.demo, sys; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
