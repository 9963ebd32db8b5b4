"""The config file: what it takes, and what it says of what it does not."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from vllm_pard.demo import demo_path
from vllm_pard.errors import PardError
from vllm_pard.training.options.train_config import load_config

GIVEN: dict[str, Any] = {
    "target": "some/target",
    "draft": "some/draft",
    "output": "runs/x",
    "data": {"sources": [{"path": "answers.jsonl"}], "max_length": 512},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(GIVEN))
    return file


def test_what_is_left_out_has_its_default(path: Path) -> None:
    config = load_config(path)
    assert (config.cod.num_depths, config.cod.retention, config.cod.min_retention) == (8, 0.7, 0.2)
    assert config.loss.scales == {"ce": 1.0}
    assert config.features is None
    assert config.num_speculative_tokens == 8
    assert config.data.sources[0].path == "answers.jsonl"
    assert not config.runs_target


def test_options_of_the_command_line_replace_those_of_the_file(path: Path) -> None:
    words = ["--cod.num-depths", "16", "--trainer.learning_rate=1e-5", "--features.layers", "[-1, -4]"]
    config = load_config(path, [*words, "--data.max_length", "4096", "--seed", "7"])
    assert config.cod.num_depths == 16
    assert config.trainer == {"learning_rate": 1e-5}
    assert config.features is not None
    assert config.features.layers == (-1, -4)
    assert config.data.max_length == 4096
    assert config.seed == 7
    assert config.runs_target


def test_the_bundled_models_are_known_by_name(path: Path) -> None:
    config = load_config(path, ["--target", "demo", "--draft", "demo/draft_ar"])
    assert (config.target, config.draft) == (str(demo_path("target")), str(demo_path("draft_ar")))


@pytest.mark.parametrize("written", ["1e-5", "1.0e-5", "0.00001", "1E-5", "1.e-5"])
def test_a_learning_rate_is_a_number(path: Path, written: str) -> None:
    assert load_config(path, ["--trainer.learning_rate", written]).trainer["learning_rate"] == 1e-5


def test_the_draft_can_be_pruned(path: Path) -> None:
    assert load_config(path, ["--draft", "null", "--prune-layers", "4"]).prune_layers == 4
    assert load_config(path, ["--draft", "null", "--prune-layers", "[0, 1, 28]"]).prune_layers == (0, 1, 28)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--cod.num_dephts", "4"],
            r"unknown option cod.num_dephts in the training config; did you mean cod.num_depths\?",
        ),
        (
            ["--data.sources", "[{pth: x}]"],
            r"unknown option data.sources\[0\].pth .* did you mean data.sources\[0\].path\?",
        ),
        (["--los", "1"], r"did you mean loss\?"),
        (["--cod.num_depths", "many"], "cod.num_depths of the training config: .* got 'many'"),
        (["--cod.num_depths", "0"], "cod.num_depths must be a whole number from 1; got 0"),
        (["--cod.retention", "1.5"], "0 < min_retention <= retention <= 1"),
        (["--loss.ce", "0"], "loss needs one of ce, kl, tv, lk above 0"),
        (["--loss.kl", "-1"], "loss.kl must be a number from 0; got -1"),
        (["--loss.weights", "dpace"], "loss.weights of the training config"),
        (["--loss.smoothing", "2"], "from 0 to 1"),
        (["--features.layers", "[]"], "features.layers must be a list of different numbers below 0"),
        (["--features.layers", "[-1, -1]"], "different numbers"),
        (["--features.scale", "0"], "above 0"),
        (["--features.dropout", "1"], "below 1"),
        (["--prune_layers", "4"], "exactly one of .* got draft and prune_layers"),
        (["--draft", "null"], "exactly one of .* got none"),
        (["--target", "null", "--loss.kl", "1"], "this loss needs the target, and none is named"),
        (["--target", "null", "--features", "{}"], "features needs the target"),
        (["--trainer.output_dir", "x"], "trainer.output_dir is set by output"),
        (["--data", "null"], "data of the training config"),
        (["--seed"], "--seed needs a value"),
        (["seed", "3"], "after the config come options"),
        (["--seed.x", "3"], "seed"),
        (["--data.max_length", "1"], "at least 2"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_wrong_option_is_named(path: Path, words: list[str], message: str) -> None:
    with pytest.raises(PardError, match=message):
        load_config(path, words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("target: [", "is not valid YAML"),
        ("- a\n- b", "must hold options by name; it holds list"),
        ("", "must hold options by name; it holds NoneType"),
        ("target: x\ndraft: y\noutput: z", "the training config needs data, and has none: set it"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(PardError, match=message):
        load_config(file)


def test_what_a_check_says_comes_alone(path: Path) -> None:
    """Without what pydantic adds: all that was given, secrets too."""
    with pytest.raises(PardError) as told:
        load_config(path, ["--target", "null", "--loss.kl", "1"])
    assert str(told.value) == "this loss needs the target, and none is named: set target"


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(PardError, match="can't read the config file"):
        load_config(tmp_path / "none.yaml")
