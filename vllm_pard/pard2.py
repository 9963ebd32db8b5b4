"""PARD and PARD-2 in a config.json: the keys, what a PARD-2 draft takes from its target, and whether a target has it.

PARD-2 (arXiv 2605.08632) adds features of the target to the draft's input, at the position p of a real token:

    dependent      Emb(x_p) + scale * target_proj(h_{p-1})
    independent    Emb(x_p): the same weights as a plain PARD draft, for any target

h_p are hidden states of the target at position p, those of `target_layers` side by side; h_{-1} is 0, and mask tokens
repeat the feature of the newest real token. Layers are counted as in
Transformers' hidden_states: 0 is the embeddings, i the output of the layer i, and -1 has gone through the final norm.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal, NamedTuple, get_args

from vllm_pard.config_values import CheckpointError, is_finite, is_int, positive_int

Mode = Literal["dependent", "independent"]
WantedMode = Literal["auto", "dependent", "independent"]

# What files of older trainers leave out: https://github.com/AMD-AGI/PARD, prepare_pard2_infer_config.
LEGACY_SCALE, LEGACY_DIM = 0.02, 4096
LEGACY_LAYERS, LEGACY_WIDE_LAYERS, LEGACY_WIDE_DIM = (-1,), (-1, -8, -16, -24), 10000
# The public drafts' configs do not name the targets that they were trained for.
PUBLIC_DRAFTS = {
    "PARD2-Llama-3.1-8B": "Llama-3.1-8B-Instruct",
    "PARD2-Qwen3-8B": "Qwen3-8B",
    "PARD2-Qwen3-14B": "Qwen3-14B",
}


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """What a PARD-2 draft takes from its target."""

    target_layers: tuple[int, ...]  # of hidden_states, in the order of target_proj's columns
    scale: float
    target_dim: int  # the target's hidden size x number of layers
    has_bias: bool
    target: str | None  # the model that it was trained for, where that is known

    @property
    def target_hidden_size(self) -> int:
        return self.target_dim // len(self.target_layers)


class ModeChoice(NamedTuple):
    """How a draft is to be run, and why, for the user to read."""

    mode: Mode
    reason: str


def is_pard2(config: Mapping[str, Any]) -> bool:
    return config.get("spd_type") == "pard2" or config.get("pard2") is True


def read_features(model: str, config: Mapping[str, Any]) -> FeatureConfig:
    """The features of the PARD-2 draft `model`; keys of older files count where the present ones are missing."""
    target_dim = positive_int(model, config, _first_key(config, "pard2_target_dim", "pard_target_dim")) or LEGACY_DIM
    layers = _target_layers(model, config, target_dim)
    if target_dim % len(layers):
        raise CheckpointError(
            f"pard2_target_dim in the config.json of {model!r} must be a multiple of its number of target layers "
            f"({len(layers)}); got {target_dim}"
        )
    scale_key = _first_key(config, "pard2_scale", "feat_scale", "pard_scale")
    scale = LEGACY_SCALE if config.get(scale_key) is None else config[scale_key]
    if not is_finite(scale):
        raise CheckpointError(f"{scale_key} in the config.json of {model!r} must be a finite number; got {scale!r}")
    bias_key = _first_key(config, "pard2_proj_bias", "proj_bias")
    has_bias = config.get(bias_key)
    if not isinstance(has_bias, bool | None):
        raise CheckpointError(f"{bias_key} in the config.json of {model!r} must be true or false; got {has_bias!r}")
    target = config.get("pard2_target")
    if target is not None and not (isinstance(target, str) and target):
        raise CheckpointError(f"pard2_target in the config.json of {model!r} must name a model; got {target!r}")
    return FeatureConfig(
        target_layers=layers,
        scale=float(scale),
        target_dim=target_dim,
        has_bias=has_bias is True,
        target=target or PUBLIC_DRAFTS.get(PurePath(model).name),
    )


def pard_config_keys(*, mask_token_id: int, num_speculative_tokens: int) -> dict[str, Any]:
    """What config.json needs, beside the model's own keys, for `read_checkpoint` to find a PARD draft."""
    return {
        "pard_token": mask_token_id,
        "spd_type": "pard",
        "num_speculative_tokens_trained": num_speculative_tokens,
    }


def pard2_config_keys(*, mask_token_id: int, num_speculative_tokens: int, features: FeatureConfig) -> dict[str, Any]:
    """The same for a PARD-2 draft. AMD's code reads these keys too, but for the last two."""
    keys = {
        "pard2": True,
        "spd_type": "pard2",
        "pard2_scale": features.scale,
        "pard2_proj_bias": features.has_bias,
        "pard2_target_dim": features.target_dim,
        "pard2_target_layers": list(features.target_layers),
        "pard_token": mask_token_id,
        "num_speculative_tokens_trained": num_speculative_tokens,
    }
    return keys if features.target is None else keys | {"pard2_target": features.target}


def choose_mode(
    draft: str,
    features: FeatureConfig | None,
    target: str,
    target_config: Mapping[str, Any],
    *,
    wanted: WantedMode = "auto",
) -> ModeChoice:
    """The mode in which to run the draft with these features for the target of this name and Hugging Face config.

    Dependent needs the shapes of the target that the draft was trained for, and, unless it is `wanted`, the name: to
    the draft, features of another target of the same shapes mean nothing. Raises CheckpointError where dependent is
    wanted and the shapes do not fit.
    """
    if wanted not in get_args(WantedMode):
        raise CheckpointError(f"the mode of a draft must be one of {', '.join(get_args(WantedMode))}; got {wanted!r}")
    if wanted == "independent":
        return ModeChoice("independent", "asked for")
    misfit = features_misfit(draft, features, target, target_config)
    if misfit is not None and wanted == "dependent":
        raise CheckpointError(f"dependent mode is not possible: {misfit}; use independent mode, or another draft")
    if misfit is not None:
        return ModeChoice("independent", misfit)
    trained = features and features.target
    if trained and not is_named(trained, target, target_config):
        other = f"the draft {draft!r} takes features of {trained!r}, and the target is {target!r}"
        is_asked = wanted == "dependent"
        return ModeChoice("dependent", f"asked for; {other}") if is_asked else ModeChoice("independent", other)
    return ModeChoice("dependent", f"the draft {draft!r} takes features of {trained or 'a target of this shape'}")


def is_named(name: str, target: str, target_config: Mapping[str, Any]) -> bool:
    """Whether the target is called `name`, by whomever it is published."""
    return _last_part(name) in _names(target, target_config)


def features_misfit(
    draft: str, features: FeatureConfig | None, target: str, target_config: Mapping[str, Any]
) -> str | None:
    """Why the target can't give the draft its features, by the target's config; None if it can."""
    if features is None:
        return f"the draft {draft!r} is no PARD-2 draft: it takes no features of its target"
    config = target_config.get("text_config") or target_config
    hidden_size, num_layers = config.get("hidden_size"), config.get("num_hidden_layers") or 0
    if hidden_size != features.target_hidden_size:
        return (
            f"the draft {draft!r} takes features of a target with hidden size {features.target_hidden_size}, "
            f"and {target!r} has {hidden_size!r}"
        )
    for layer in features.target_layers:
        if not -num_layers - 1 <= layer <= num_layers:
            return f"the draft {draft!r} takes features of layer {layer}, and {target!r} has {num_layers} layers"
    return None


def _target_layers(model: str, config: Mapping[str, Any], target_dim: int) -> tuple[int, ...]:
    key = _first_key(config, "pard2_target_layers", "target_layers")
    layers = config.get(key)
    if layers is None:
        is_wide = target_dim > LEGACY_WIDE_DIM or config.get("pard2_ml") is True or config.get("ml") is True
        return LEGACY_WIDE_LAYERS if is_wide else LEGACY_LAYERS
    is_list = isinstance(layers, list) and layers and all(map(is_int, layers))
    if not is_list or len(set(layers)) < len(layers):
        raise CheckpointError(
            f"{key} in the config.json of {model!r} must be a list of layer numbers, each once; got {layers!r}"
        )
    return tuple(layers)


def _first_key(config: Mapping[str, Any], *keys: str) -> str:
    """The first key that the config has a value for, or else the first."""
    return next((key for key in keys if config.get(key) is not None), keys[0])


def _names(target: str, config: Mapping[str, Any]) -> set[str]:
    """The names that a target may go by: of its folder or repository, here and where it came from."""
    names = {_last_part(target), _last_part(str(config.get("_name_or_path", "")))}
    # The hub's cache keeps Org/Name in models--Org--Name/snapshots/REVISION.
    cached = re.search(r"models--(?:.+?--)?([^/]+)/snapshots/", target)
    return names | {cached[1].lower()} if cached else names


def _last_part(name: str) -> str:
    return PurePath(name).name.lower()
