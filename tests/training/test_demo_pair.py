from __future__ import annotations

import json

import pytest
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from vllm_pard.demo.text.corpus import EVALUATION_SPLITS
from vllm_pard.training import demo_pair
from vllm_pard.training.models import ModelConfig
from vllm_pard.training.receipt import config_hash
from vllm_pard.training.recipe import DemoPairConfig, smoke_config
from vllm_pard.training.workspace import Workspace

STAGES = ["text", "target", "draft_ar", "draft_text", "answers", "draft", "evaluation"]


def test_a_finished_stage_is_skipped_and_a_changed_one_is_not(tmp_path):
    lines, ran = [], []
    workspace = Workspace(tmp_path, lines.append)
    for key in ("a", "a", "b"):
        workspace.run("text", key, {}, lambda stage: ran.append(stage.key) or {"n": 1})
    assert ran == ["a", "b"]
    assert "text: finished before, skipped" in lines
    receipt = json.loads((tmp_path / "text" / "run.json").read_text())
    assert receipt["config_hash"] == "b"
    assert receipt["environment"]["packages"]["torch"]


def test_the_key_of_a_stage_changes_with_its_config_and_its_past():
    config = DemoPairConfig()
    assert config_hash(config.target, "past") == config_hash(DemoPairConfig().target, "past")
    assert config_hash(config.target, "past") != config_hash(config.target, "other past")
    assert config_hash(config.target) != config_hash(smoke_config().target)


def test_an_output_that_cannot_be_written_ends_with_a_clear_error(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert demo_pair.main(["--smoke", "--output", str(tmp_path / "file")]) == 1
    assert "--output must be a folder that can be written" in capsys.readouterr().err


def test_a_thread_count_below_one_is_refused(tmp_path, capsys):
    assert demo_pair.main(["--smoke", "--threads", "0", "--output", str(tmp_path)]) == 1
    assert "--threads must be 1 or more; got 0" in capsys.readouterr().err


def test_an_untrained_pair_is_never_installed(tmp_path, capsys):
    with pytest.raises(SystemExit):
        demo_pair.main(["--smoke", "--install", "--output", str(tmp_path)])
    assert "--install needs a trained pair" in capsys.readouterr().err


@pytest.mark.parametrize("hidden_size", [0, 63, 100])
def test_a_hidden_size_that_no_head_fits_is_refused(hidden_size):
    with pytest.raises(ValueError, match=f"multiple of the head size 64; got {hidden_size}"):
        ModelConfig(hidden_size=hidden_size, num_layers=1, intermediate_size=64)


@pytest.mark.slow
def test_smoke_run_makes_a_whole_bundle_and_a_second_run_skips_all(tmp_path, capsys):
    output = tmp_path / "pair"
    assert demo_pair.main(["--smoke", "--threads", "2", "--output", str(output)]) == 0
    shipped = output / "bundle"
    config = json.loads((shipped / "draft" / "config.json").read_text())
    assert (config["pard_token"], config["spd_type"], config["num_speculative_tokens_trained"]) == (3, "pard", 8)
    for name in ("target", "draft", "draft_ar"):
        AutoModelForCausalLM.from_pretrained(shipped / name)
        assert len(AutoTokenizer.from_pretrained(shipped / name)) == 2048
        with safe_open(shipped / name / "model.safetensors", "pt") as weights:
            assert {str(weights.get_tensor(key).dtype) for key in weights.keys()} == {"torch.bfloat16"}  # noqa: SIM118
    assert {path.stem for path in (shipped / "prompts").iterdir()} == set(EVALUATION_SPLITS)
    receipts = json.loads((shipped / "receipt.json").read_text())
    assert [receipt["stage"] for receipt in receipts] == STAGES
    assert str(tmp_path) not in (shipped / "receipt.json").read_text()
    assert "| word_problems |" in (shipped / "README.md").read_text()

    capsys.readouterr()
    assert demo_pair.main(["--smoke", "--threads", "2", "--output", str(output)]) == 0
    assert capsys.readouterr().out.count("finished before, skipped") == len(STAGES)
