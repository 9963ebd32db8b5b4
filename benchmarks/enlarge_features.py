"""What a PARD-2 draft takes of its target, where the target has been enlarged.

The residual stream keeps its numbers in its first dimensions, and new layers come last and add zero. So a state lies
at its layer counted from below, and the last one anywhere above; only its new dimensions must not count.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from shapes import ModelShape

from vllm_pard.checkpoint import load_config
from vllm_pard.pard2 import FeatureConfig, pard2_config_keys, read_features
from vllm_pard.target_proj import read_target_proj, write_target_proj


def enlarged(features: FeatureConfig, old: ModelShape, new: ModelShape) -> FeatureConfig:
    """Of a target that had `old` as its shape, and has `new`."""
    num_new_layers = new.num_hidden_layers - old.num_hidden_layers
    layers = tuple(layer - num_new_layers if layer < -1 else layer for layer in features.target_layers)
    return replace(features, target_layers=layers, target_dim=len(layers) * new.hidden_size)


def feature_keys(draft: Path, config: Mapping[str, Any], old: ModelShape, new: ModelShape) -> dict[str, Any]:
    """In the config.json of the draft; `old` and `new` are the target's."""
    return pard2_config_keys(
        mask_token_id=config["pard_token"],
        num_speculative_tokens=config["num_speculative_tokens_trained"],
        features=enlarged(read_features(str(draft), config), old, new),
    )


def write_features(draft: Path, folder: Path, new_config: Mapping[str, Any], dtype: torch.dtype) -> None:
    """target_proj of `draft` into `folder`; new dimensions of the target's states, and new ones of the draft, get 0."""
    config = load_config(str(draft))
    old, new = read_features(str(draft), config), read_features(str(folder), new_config)
    old_size, new_size = config["hidden_size"], new_config["hidden_size"]
    weight = torch.zeros(new_size, len(new.target_layers), new.target_hidden_size)
    source = read_target_proj(str(draft), old, old_size).weight
    weight[:old_size, :, : old.target_hidden_size] = source.view(old_size, -1, old.target_hidden_size).float()
    write_target_proj(folder, weight.flatten(1).to(dtype))
