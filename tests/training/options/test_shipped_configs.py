"""The configs that come with the package: they load, and have the numbers that were published."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import vllm_pard
from vllm_pard.cli import main
from vllm_pard.errors import PardError
from vllm_pard.training.options.arguments import training_arguments
from vllm_pard.training.options.shipped_configs import find_config, shipped_configs
from vllm_pard.training.options.train_config import TrainConfig, load_config

NUM_GPUS = 8
LAYERS = (-1, -8, -16, -24)
COSINE = "cosine_with_min_lr"
COLUMNS = ("cod", "mask", "samples_per_step", "batch", "learning_rate", "schedule", "max_length", "epochs", "features")
# AMD's config/train/example_*.yaml, and READMEs: P, r, r_min; mask id; per-device batch x accumulation x 8 GPUs.
PUBLISHED = {
    "pard_llama3.2_1b": ((8, 0.7, 0.2), 128020, 64, 4, 1e-5, "constant", 512, 4, None),
    "pard_qwen2.5_0.5b": ((8, 0.7, 0.2), 151665, 64, 8, 3e-5, "constant", 512, 4, None),
    "pard_deepseek_r1_distill_qwen_1.5b": ((8, 0.7, 0.2), 151665, 64, 4, 8e-5, "constant", 1024, 4, None),
    "pard2_llama3.1_8b": ((16, 0.7, 0.1), 128020, 64, 8, 1e-5, "constant", 512, 4, (LAYERS, 0.02, 0.2)),
    "pard2_qwen3_8b": ((16, 0.7, 0.1), 151670, 64, 4, 3e-5, COSINE, 1024, 4, (LAYERS, 0.02, 0.1)),
    "pard2_qwen3_14b": ((16, 0.7, 0.1), 151670, 64, 4, 3e-5, COSINE, 1024, 4, (LAYERS, 0.02, 0.1)),
}
STARTS = {
    "pard_llama3.2_1b": (None, "meta-llama/Llama-3.2-1B-Instruct"),
    "pard_qwen2.5_0.5b": (None, "Qwen/Qwen2.5-0.5B-Instruct"),
    "pard_deepseek_r1_distill_qwen_1.5b": (None, "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"),
    "pard_qwen3_0.6b": (None, "Qwen/Qwen3-0.6B"),
    "pard2_llama3.1_8b": ("unsloth/Llama-3.1-8B-Instruct", "unsloth/Llama-3.2-1B-Instruct"),
    "pard2_qwen3_8b": ("Qwen/Qwen3-8B", "Qwen/Qwen3-0.6B"),
    "pard2_qwen3_14b": ("Qwen/Qwen3-14B", "Qwen/Qwen3-0.6B"),
    "best_8_gpus": ("Qwen/Qwen3-8B", "Qwen/Qwen3-0.6B"),
    "laptop": ("HuggingFaceTB/SmolLM2-135M-Instruct", None),
}


def config_of(name: str, *words: str) -> TrainConfig:
    return load_config(find_config(name), words)


def numbers(config: TrainConfig, output: Path) -> dict[str, Any]:
    """What a run would do, by the arguments that it would have."""
    arguments = training_arguments(config)
    features = config.features
    batch = arguments.per_device_train_batch_size
    values = (
        (config.cod.num_depths, config.cod.retention, config.cod.min_retention),
        config.mask_token_id,
        batch * arguments.gradient_accumulation_steps * NUM_GPUS,
        batch,
        arguments.learning_rate,
        arguments.lr_scheduler_type.value,
        config.data.max_length,
        config.trainer["num_train_epochs"],
        features and (features.layers, features.scale, features.dropout),
    )
    return dict(zip(COLUMNS, values, strict=True))


def test_all_are_known_here() -> None:
    assert shipped_configs() == sorted(STARTS)


@pytest.mark.parametrize("name", STARTS)
def test_it_loads_and_starts_where_it_says(name: str, tmp_path: Path) -> None:
    config = config_of(name, "--output", str(tmp_path))
    assert (config.target, config.draft) == STARTS[name]
    arguments = training_arguments(config)
    assert arguments.gradient_checkpointing is (name != "laptop")
    assert arguments.load_best_model_at_end


@pytest.mark.parametrize("name", PUBLISHED)
def test_its_numbers_are_the_published_ones(name: str, tmp_path: Path) -> None:
    config = config_of(name, "--output", str(tmp_path))
    assert numbers(config, tmp_path) == dict(zip(COLUMNS, PUBLISHED[name], strict=True))
    if name.startswith("pard2"):
        assert (config.loss.scales, config.loss.weights) == ({"ce": 0.1, "kl": 1.0}, "cat")
        assert config.data.train_on == "answers"
    else:
        assert (config.loss.scales, config.loss.weights) == ({"ce": 1.0}, "none")
        assert config.data.train_on == "all"


def test_a_cosine_ends_at_a_tenth_after_a_warm_up(tmp_path: Path) -> None:
    arguments = training_arguments(config_of("pard2_qwen3_8b", "--output", str(tmp_path)))
    assert arguments.lr_scheduler_kwargs == {"min_lr_rate": 0.1}
    assert arguments.warmup_steps == 0.03


def test_what_is_not_published_is_said() -> None:
    assert "is not" in find_config("pard_qwen3_0.6b").read_text()
    assert config_of("pard_qwen3_0.6b").mask_token_id == 151670


def test_the_best_differs_where_it_says(tmp_path: Path) -> None:
    best, published = (config_of(name, "--output", str(tmp_path)) for name in ("best_8_gpus", "pard2_qwen3_8b"))
    ours, theirs = numbers(best, tmp_path), numbers(published, tmp_path)
    differing = {name for name in COLUMNS if ours[name] != theirs[name]}
    assert differing == {"samples_per_step", "batch", "max_length"}
    assert ours["max_length"] == 4096
    assert (published.loss.weights, best.loss.weights) == ("cat", "d-pace")
    # As many tokens a step.
    assert ours["samples_per_step"] * 4096 == theirs["samples_per_step"] * 1024
    assert training_arguments(best).bf16


def test_the_laptops_draft_is_small() -> None:
    config = config_of("laptop")
    assert (config.prune_layers, config.freeze_embeddings, config.draft_vocab) == (2, True, 4096)
    assert not config.runs_target


def test_a_name_a_file_name_and_a_path_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = find_config("laptop")
    assert shipped.parent.name == "configs"
    assert find_config("laptop.yaml") == shipped
    assert find_config(str(shipped)) == shipped
    monkeypatch.chdir(tmp_path)
    Path("laptop.yaml").write_text("mine")
    assert find_config("laptop.yaml").read_text() == "mine"  # what is here comes first


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pard2_qwen3_8", r"no config of this name is shipped; did you mean pard2_qwen3_8b\?"),
        ("laptp.yaml", r"did you mean laptop\?"),
        ("something", "shipped are best_8_gpus, laptop, pard2_llama3.1_8b"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name: str, message: str) -> None:
    with pytest.raises(PardError, match=message):
        find_config(name)


def test_the_command_takes_names(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for words, told in ((["laptp"], "did you mean laptop?"), (["laptop", "--sed", "1"], "did you mean seed?")):
        monkeypatch.setattr("sys.argv", ["vllm-pard", "train", *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        assert told in capsys.readouterr().err


def test_they_are_in_the_package() -> None:
    root = Path(vllm_pard.__file__).parents[1]
    pyproject = (root / "pyproject.toml").read_text()
    package_data = json.loads(re.search(r"package-data]\nvllm_pard = (.*)", pyproject)[1])
    found = {path for pattern in package_data for path in (root / "vllm_pard").glob(pattern)}
    assert {find_config(name) for name in STARTS} <= found
