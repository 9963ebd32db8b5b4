"""A PARD-2 draft of an enlarged target is given the numbers that it is given by the small one."""

import json
import shutil
from pathlib import Path
from typing import Any

import enlarge
import pytest
import torch
from shapes import SHAPES, shape_of
from torch import Tensor
from transformers import AutoModelForCausalLM

from vllm_pard.checkpoint import load_config, read_checkpoint
from vllm_pard.demo import demo_path
from vllm_pard.pard2 import FeatureConfig, pard2_config_keys
from vllm_pard.target_proj import read_target_proj, write_target_proj

TINY = SHAPES["tiny"]
LAYERS = (-1, -3, 1)
TOKENS = torch.arange(40, 52)[None]
TOL = 2e-4  # fp32 sums in another order: 5e-5 seen


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's draft as one that reads features."""
    folder = tmp_path_factory.mktemp("small") / "draft"
    shutil.copytree(demo_path("draft"), folder)
    config = load_config(str(folder))
    target_dim = len(LAYERS) * load_config(str(demo_path("target")))["hidden_size"]
    features = FeatureConfig(target_layers=LAYERS, scale=0.5, target_dim=target_dim, has_bias=False, target="target")
    keys = pard2_config_keys(mask_token_id=config["pard_token"], num_speculative_tokens=8, features=features)
    (folder / "config.json").write_text(json.dumps(config | keys))
    write_target_proj(folder, torch.randn(config["hidden_size"], target_dim))
    return folder


@pytest.fixture(scope="module")
def large(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both, enlarged."""
    folder = tmp_path_factory.mktemp("large")
    change = shape_of(load_config(str(demo_path("target")))), TINY.target
    for source, shape in ((demo_path("target"), TINY.target), (small, TINY.draft)):
        plan = enlarge.plan_model(source, folder / source.name, shape, torch.float32, {}, change)
        enlarge.write_model(plan, torch.device("cpu"), seed=0)
    return folder


@torch.inference_mode()
def projected(target: Path, draft: Path, *, layers: tuple[int, ...] | None = None) -> Tensor:
    """What is added to the draft's embeddings. [L, H]"""
    checkpoint = read_checkpoint(str(draft), load_config(str(draft)))
    assert checkpoint.features is not None
    model: Any = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    states = model(TOKENS, output_hidden_states=True).hidden_states
    features = torch.cat([states[layer][0] for layer in layers or checkpoint.features.target_layers], dim=-1)
    weight = read_target_proj(str(draft), checkpoint.features, load_config(str(draft))["hidden_size"]).weight
    return features @ weight.T


def test_the_draft_is_given_the_same(small: Path, large: Path) -> None:
    expected, got = projected(demo_path("target"), small), projected(large / "target", large / "draft")
    size = expected.shape[-1]
    torch.testing.assert_close(got[:, :size], expected, atol=TOL, rtol=TOL)
    assert got.shape[-1] > size
    assert not got[:, size:].any()


def test_layers_are_counted_from_below(small: Path, large: Path) -> None:
    """The control: the small target's numbers of layers, counted from above, are others in a deeper one."""
    expected = projected(demo_path("target"), small)
    wrong = projected(large / "target", large / "draft", layers=LAYERS)
    assert (wrong[:, : expected.shape[-1]] - expected).abs().max() > 100 * TOL


def test_no_file_of_the_small_draft_is_left(small: Path, large: Path) -> None:
    for name in ("warp_model.bin", "pard_warp_model/model.safetensors"):
        assert (large / "draft" / name).stat().st_size > (small / name).stat().st_size
