"""PARD-2 in a config.json, and which mode a target allows."""

import json
from typing import Any

import pytest

from vllm_pard.checkpoint import CheckpointError, PardCheckpoint, read_checkpoint
from vllm_pard.pard2 import FeatureConfig, choose_mode, pard2_config_keys, pard_config_keys

MODEL: dict[str, Any] = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 512}
PARD2 = MODEL | {
    "spd_type": "pard2",
    "pard2": True,
    "pard2_scale": 0.02,
    "pard2_proj_bias": False,
    "pard2_target_dim": 256,
    "pard2_target_layers": [-1, -8, -16, -24],
    "pard_token": 500,
}
FEATURES = FeatureConfig(
    target_layers=(-1, -8, -16, -24), scale=0.02, target_dim=256, has_bias=False, target="Qwen/Qwen3-8B"
)
TARGET = {"hidden_size": 64, "num_hidden_layers": 36}


def features_of(config: dict[str, Any], model: str = "draft") -> FeatureConfig:
    features = read_checkpoint(model, config).features
    assert features is not None
    return features


def test_features() -> None:
    features = features_of(PARD2)
    assert features.target_layers == (-1, -8, -16, -24)
    assert (features.scale, features.target_dim, features.has_bias) == (0.02, 256, False)
    assert (features.target_hidden_size, features.target) == (64, None)
    assert read_checkpoint("draft", MODEL | {"pard_token": 500}).features is None


LEGACY = MODEL | {"pard2": True, "pard_token": 500}


@pytest.mark.parametrize(
    ("keys", "layers", "scale", "target_dim", "has_bias"),
    [
        ({}, (-1,), 0.02, 4096, False),
        ({"pard_target_dim": 10000}, (-1,), 0.02, 10000, False),
        ({"pard_target_dim": 16384}, (-1, -8, -16, -24), 0.02, 16384, False),
        ({"pard2_ml": True}, (-1, -8, -16, -24), 0.02, 4096, False),
        ({"ml": True, "proj_bias": True}, (-1, -8, -16, -24), 0.02, 4096, True),
        ({"feat_scale": 0.01, "pard_scale": 0.03}, (-1,), 0.01, 4096, False),
        ({"pard_scale": 1}, (-1,), 1.0, 4096, False),
        ({"target_layers": [5, 0], "pard2_scale": None}, (5, 0), 0.02, 4096, False),
        (
            {
                "pard2_target_layers": [-2],
                "target_layers": [-1],
                "pard2_scale": 0.5,
                "feat_scale": 0.1,
                "pard2_target_dim": 32,
                "pard_target_dim": 64,
                "pard2_proj_bias": False,
                "proj_bias": True,
            },
            (-2,), 0.5, 32, False,
        ),
    ],
)  # fmt: skip
def test_legacy_keys(
    keys: dict[str, Any], layers: tuple[int, ...], scale: float, target_dim: int, has_bias: bool
) -> None:
    features = features_of(LEGACY | keys)
    assert features == FeatureConfig(
        target_layers=layers, scale=scale, target_dim=target_dim, has_bias=has_bias, target=None
    )


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        (
            "pard2_target_layers",
            [[], "-1", -1, [-1.0], [True], [-1, -1], {"0": 1}],
            "must be a list of layer numbers, each once",
        ),
        ("target_layers", [[], [None]], "target_layers in the config.json of 'draft' must be a list of layer numbers"),
        ("pard2_scale", ["0.02", True, [1], float("nan"), float("inf"), 10**400], "must be a finite number"),
        ("feat_scale", ["0.02"], "feat_scale in the config.json of 'draft' must be a finite number; got '0.02'"),
        ("pard2_target_dim", [0, -4, 256.0, True, "256"], "must be a whole number above 0"),
        ("pard2_target_dim", [254, 3], r"must be a multiple of its number of target layers \(4\)"),
        ("pard2_proj_bias", [0, "false", 1.0], "must be true or false"),
        ("pard2_target", ["", 3, ["Qwen/Qwen3-8B"]], "must name a model"),
    ],
)
def test_broken_values(key: str, values: list[Any], message: str) -> None:
    present = f"pard2_{key.removeprefix('pard2_').replace('feat_', '')}"  # counts before an older key
    config = {name: value for name, value in PARD2.items() if name != present}
    for value in values:
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint("draft", config | {key: value})


def as_written(keys: dict[str, Any]) -> PardCheckpoint:
    return read_checkpoint("draft", json.loads(json.dumps(MODEL | keys)))


def test_pard_keys_are_read_back() -> None:
    checkpoint = as_written(pard_config_keys(mask_token_id=7, num_speculative_tokens=8))
    assert checkpoint == PardCheckpoint(
        path="draft", vocab_size=512, mask_token_id=7, num_speculative_tokens=8, features=None
    )


@pytest.mark.parametrize("target", ["Qwen/Qwen3-8B", None])
@pytest.mark.parametrize(("layers", "target_dim", "has_bias"), [((-1, -8, -16, -24), 256, False), ((3,), 48, True)])
def test_pard2_keys_are_read_back(layers: tuple[int, ...], target_dim: int, has_bias: bool, target: str | None) -> None:
    features = FeatureConfig(target_layers=layers, scale=0.05, target_dim=target_dim, has_bias=has_bias, target=target)
    checkpoint = as_written(pard2_config_keys(mask_token_id=7, num_speculative_tokens=16, features=features))
    assert checkpoint == PardCheckpoint(
        path="draft", vocab_size=512, mask_token_id=7, num_speculative_tokens=16, features=features
    )


def test_pard2_keys_are_those_of_the_public_drafts() -> None:
    keys = pard2_config_keys(mask_token_id=500, num_speculative_tokens=16, features=FEATURES)
    assert keys == {key: PARD2[key] for key in PARD2.keys() - MODEL.keys()} | {
        "pard2_target": "Qwen/Qwen3-8B",
        "num_speculative_tokens_trained": 16,
    }


@pytest.mark.parametrize(
    ("draft", "target"),
    [
        ("amd/PARD2-Llama-3.1-8B", "Llama-3.1-8B-Instruct"),
        ("/models/PARD2-Qwen3-8B/", "Qwen3-8B"),
        ("amd/PARD2-Qwen3-14B", "Qwen3-14B"),
        ("amd/PARD-Qwen3-0.6B", None),
        ("someone/my-PARD2-Qwen3-8B", None),
    ],
)
def test_targets_of_the_public_drafts(draft: str, target: str | None) -> None:
    assert features_of(PARD2, draft).target == target
    assert features_of(PARD2 | {"pard2_target": "org/other"}, draft).target == "org/other"


@pytest.mark.parametrize(
    "target",
    [
        "Qwen/Qwen3-8B",
        "/models/qwen3-8b/",
        "someone/Qwen3-8B",
        "/cache/models--Qwen--Qwen3-8B/snapshots/0123abcd",
        "/cache/models--Qwen--Qwen3-8B/snapshots/0123abcd/",
    ],
)
def test_the_target_that_it_was_trained_for(target: str) -> None:
    mode, reason = choose_mode("d", FEATURES, target, TARGET)
    assert mode == "dependent"
    assert reason == "the draft 'd' takes features of Qwen/Qwen3-8B"


def test_a_renamed_folder_of_the_target() -> None:
    assert choose_mode("d", FEATURES, "/models/t", TARGET | {"_name_or_path": "Qwen/Qwen3-8B"}).mode == "dependent"
    mode, reason = choose_mode("d", FEATURES, "/models/t", TARGET)
    assert mode == "independent"
    assert reason == "the draft 'd' takes features of 'Qwen/Qwen3-8B', and the target is '/models/t'"
    mode, reason = choose_mode("d", FEATURES, "/models/t", TARGET, wanted="dependent")
    assert mode == "dependent"
    assert reason.startswith("asked for; the draft 'd' takes features of 'Qwen/Qwen3-8B'")


@pytest.mark.parametrize("target", ["Qwen/Qwen3-8B-Base", "Qwen/Qwen3-14B", "Qwen3-8B/other", "models--x/snapshots/1"])
def test_another_target_of_the_same_shape(target: str) -> None:
    assert choose_mode("d", FEATURES, target, TARGET).mode == "independent"


def test_no_name_known() -> None:
    mode, reason = choose_mode("d", features_of(PARD2), "any/target", TARGET)
    assert mode == "dependent"
    assert reason == "the draft 'd' takes features of a target of this shape"


@pytest.mark.parametrize(
    ("target_config", "reason"),
    [
        ({"hidden_size": 128}, "a target with hidden size 64, and 'Qwen/Qwen3-8B' has 128"),
        ({"hidden_size": None}, "a target with hidden size 64, and 'Qwen/Qwen3-8B' has None"),
        ({"num_hidden_layers": 22}, "features of layer -24, and 'Qwen/Qwen3-8B' has 22 layers"),
        ({"num_hidden_layers": None}, "features of layer -8, and 'Qwen/Qwen3-8B' has 0 layers"),
        ({"text_config": {"hidden_size": 32}}, "a target with hidden size 64, and 'Qwen/Qwen3-8B' has 32"),
    ],
)
def test_a_target_of_another_shape(target_config: dict[str, Any], reason: str) -> None:
    mode, why = choose_mode("d", FEATURES, "Qwen/Qwen3-8B", TARGET | target_config)
    assert mode == "independent"
    assert reason in why
    with pytest.raises(CheckpointError, match=f"dependent mode is not possible: .*{reason}; use independent mode"):
        choose_mode("d", FEATURES, "Qwen/Qwen3-8B", TARGET | target_config, wanted="dependent")


@pytest.mark.parametrize(
    ("num_layers", "layer", "fits"), [(23, -24, True), (22, -24, False), (5, 5, True), (5, 6, False)]
)
def test_hidden_states_are_one_more_than_layers(num_layers: int, layer: int, fits: bool) -> None:
    features = FeatureConfig(target_layers=(layer,), scale=0.02, target_dim=64, has_bias=False, target=None)
    mode, _ = choose_mode("d", features, "t", {"hidden_size": 64, "num_hidden_layers": num_layers})
    assert mode == ("dependent" if fits else "independent")


def test_targets_with_a_text_model() -> None:
    assert choose_mode("d", FEATURES, "Qwen/Qwen3-8B", {"text_config": TARGET}).mode == "dependent"


def test_what_is_asked_for() -> None:
    assert choose_mode("d", FEATURES, "Qwen/Qwen3-8B", TARGET, wanted="independent") == ("independent", "asked for")
    assert choose_mode("d", FEATURES, "Qwen/Qwen3-8B", TARGET, wanted="dependent").mode == "dependent"
    mode: Any = "fast"
    with pytest.raises(CheckpointError, match="must be one of auto, dependent, independent; got 'fast'"):
        choose_mode("d", FEATURES, "Qwen/Qwen3-8B", TARGET, wanted=mode)


def test_a_pard_draft_is_independent() -> None:
    mode, reason = choose_mode("d", None, "Qwen/Qwen3-8B", TARGET)
    assert (mode, reason) == ("independent", "the draft 'd' is no PARD-2 draft: it takes no features of its target")
    with pytest.raises(CheckpointError, match="not possible: the draft 'd' is no PARD-2 draft"):
        choose_mode("d", None, "Qwen/Qwen3-8B", TARGET, wanted="dependent")
