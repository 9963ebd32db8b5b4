"""The tiny PARD draft as a PARD-2 draft: it reads features of its target, and they matter to it."""

import json
import shutil
from pathlib import Path

import torch

from vllm_pard.pard2 import FeatureConfig, pard2_config_keys
from vllm_pard.target_proj import write_target_proj

HIDDEN_SIZE, LAYERS = 128, (-1, -3)  # of the tiny models, which have two layers
MASK_TOKEN_ID, TRAINED_K = 300, 4


def save_pard2_draft(
    folder: Path, draft: Path, *, target: str = "org/target", layers: tuple[int, ...] = LAYERS
) -> Path:
    """A copy of `draft` for the target of this name; the tiny pair's lies in a folder "target"."""
    shutil.copytree(draft, folder)
    target_dim = len(layers) * HIDDEN_SIZE
    features = FeatureConfig(target_layers=layers, scale=0.02, target_dim=target_dim, has_bias=False, target=target)
    keys = pard2_config_keys(mask_token_id=MASK_TOKEN_ID, num_speculative_tokens=TRAINED_K, features=features)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    weight = 0.09 * torch.randn(HIDDEN_SIZE, target_dim, generator=torch.Generator().manual_seed(3))
    write_target_proj(folder, weight)
    return folder
