"""Look-alikes of the public drafts: read, found by the catalog, and run."""

from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from public_checkpoints import (
    BIAS,
    PUBLIC_DRAFTS,
    TARGET_LAYERS,
    TARGET_SIZE,
    WEIGHT,
    PublicDraft,
    draft_keys,
    hub_folder,
    make_draft,
    make_target,
    make_weight,
    save_draft,
    save_target,
)

from vllm_pard.catalog import CatalogError, choose_draft, find_draft
from vllm_pard.checkpoint import CheckpointError, load_config, read_checkpoint
from vllm_pard.pard2 import choose_mode
from vllm_pard.reference.engine import generate
from vllm_pard.reference.models import load_model
from vllm_pard.target_proj import TargetProj, read_target_proj, target_proj_for

PARD2_DRAFTS = [draft for draft in PUBLIC_DRAFTS if draft.is_pard2]
LLAMA2, QWEN3_8B, QWEN3_14B = PARD2_DRAFTS
UNKNOWN = "amd/PARD-Llama-4-1B"  # the family's targets see images, and no entry is for these
PROMPTS = [[11, 12, 13], [100_000, 7, 100_001, 8, 9, 10, 11, 12]]


def name(draft: PublicDraft) -> str:
    return draft.short_name


def target_proj_of(folder: Path, config: dict[str, Any]) -> TargetProj:
    checkpoint = read_checkpoint(str(folder), config)
    assert checkpoint.features is not None
    return read_target_proj(str(folder), checkpoint.features, config["hidden_size"])


def check_answers(draft: PublicDraft, draft_folder: Path, target_folder: Path) -> None:
    """In fp32, so that nothing but a draft that changes answers can change answers."""
    config, target_config = load_config(str(draft_folder)), load_config(str(target_folder))
    checkpoint = read_checkpoint(str(draft_folder), config)
    target_proj, _ = target_proj_for(checkpoint, draft.target, target_config)
    assert (target_proj is not None) == draft.is_pard2
    generations = generate(
        target := load_model(str(target_folder), "float32", "cpu"),
        load_model(str(draft_folder), "float32", "cpu"),
        PROMPTS,
        method="pard2" if draft.is_pard2 else "pard",
        num_speculative_tokens=3,
        mask_token_id=checkpoint.mask_token_id,
        target_proj=target_proj,
        max_new_tokens=6,
    )
    plain = generate(target, None, PROMPTS, method="ar", num_speculative_tokens=0, max_new_tokens=6)
    assert [generation.token_ids for generation in generations] == [generation.token_ids for generation in plain]
    assert all(generation.stats.num_draft_tokens > 0 for generation in generations)


@pytest.mark.parametrize("draft", PUBLIC_DRAFTS, ids=name)
def test_read_found_and_run(draft: PublicDraft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = save_draft(draft, hub_folder(tmp_path / "hub", draft.name))
    target_folder = save_target(draft, tmp_path / "target")
    target_config = load_config(str(target_folder))
    checkpoint, num_speculative_tokens = choose_draft(draft.target, target_config, draft=draft.name)
    assert (checkpoint.vocab_size, checkpoint.mask_token_id) == (draft.vocab_size, draft.mask_token_id)
    assert checkpoint.format == ("pard2" if draft.is_pard2 else "pard")
    if checkpoint.features is not None:
        assert checkpoint.features.target_layers == TARGET_LAYERS
        assert (checkpoint.features.scale, checkpoint.features.target_dim) == (0.02, 4 * TARGET_SIZE)
        target_proj = read_target_proj(draft.name, checkpoint.features, 16)
        assert torch.equal(target_proj.weight, make_weight())
        assert target_proj.bias is None
    elif draft.name == UNKNOWN:
        with pytest.raises(CatalogError, match="no PARD draft is known"):
            find_draft(draft.target, target_config)
    else:
        assert choose_draft(draft.target, target_config) == (checkpoint, num_speculative_tokens)
    check_answers(draft, folder.rename(tmp_path / draft.short_name), target_folder)


@pytest.mark.parametrize(
    ("draft", "dtype"), zip(PUBLIC_DRAFTS, cycle([torch.float16, torch.bfloat16, torch.float32]), strict=False)
)
def test_weights_are_those_that_were_saved(draft: PublicDraft, dtype: torch.dtype, tmp_path: Path) -> None:
    """Tied and not, in one file and in several, in each dtype."""
    folder = save_draft(draft, tmp_path, dtype=dtype, max_shard_size="4MB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    loaded = load_model(str(folder), "auto", "cpu")
    assert loaded.dtype == dtype
    saved = dict(make_draft(draft).to(dtype).named_parameters())
    read = dict(loaded.named_parameters())
    assert read.keys() == saved.keys(), "tied as in the config, though the file may have both"
    assert all(torch.equal(read[name], saved[name]) for name in read)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("target_dtype", [torch.bfloat16, torch.float32], ids=str)
def test_dtypes_may_differ(target_dtype: torch.dtype, dtype: str, tmp_path: Path) -> None:
    """Of the target, the draft and target_proj: the draft's counts."""
    folder = save_draft(QWEN3_8B, tmp_path, warp_model={WEIGHT: make_weight().half()})
    generations = generate(
        make_target(QWEN3_8B).to(target_dtype),
        load_model(str(folder), dtype, "cpu"),
        PROMPTS,
        method="pard2",
        num_speculative_tokens=3,
        mask_token_id=QWEN3_8B.mask_token_id,
        target_proj=target_proj_of(folder, load_config(str(folder))),
        max_new_tokens=6,
    )
    assert all(generation.stats.num_draft_tokens > 0 for generation in generations)


@pytest.mark.parametrize(
    ("legacy", "layers"),
    [
        ({"feat_scale": 0.01, "pard_target_dim": TARGET_SIZE}, (-1,)),
        ({"pard_scale": 0.01, "pard_target_dim": 4 * TARGET_SIZE, "pard2_ml": True}, TARGET_LAYERS),
        ({"feat_scale": 0.01, "pard_target_dim": 2 * TARGET_SIZE, "target_layers": [-1, 3]}, (-1, 3)),
    ],
)
def test_legacy_keys(legacy: dict[str, Any], layers: tuple[int, ...], tmp_path: Path) -> None:
    keys = {"pard_token": QWEN3_8B.mask_token_id, "pard2": True} | legacy
    weight = make_weight(len(layers) * TARGET_SIZE)
    folder = save_draft(QWEN3_8B, tmp_path / "draft", keys=keys, warp_model={WEIGHT: weight})
    target_proj = target_proj_of(folder, load_config(str(folder)))
    assert (target_proj.features.scale, target_proj.features.target_layers) == (0.01, layers)
    check_answers(QWEN3_8B, folder, save_target(QWEN3_8B, tmp_path / "target"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pard_token": None}, 'needs a mask token \\("pard_token" in its config.json\\), and names none'),
        ({"pard_token": 151936}, "must be a token id from 0 to 151935; pard_token is 151936"),
        ({"pard2_target_dim": 98}, r"a multiple of its number of target layers \(4\); got 98"),
    ],
)
def test_broken_config(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = save_draft(QWEN3_8B, tmp_path, keys=draft_keys(QWEN3_8B) | changes)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(str(folder), load_config(str(folder)))


@pytest.mark.parametrize(
    ("warp_model", "message"),
    [
        (
            None,
            "needs pard_warp_model/model.safetensors or warp_model.bin of .* independent mode needs none",
        ),
        (
            {WEIGHT: make_weight(80)},
            r"must be \[16, 96\], the draft's hidden size and pard2_target_dim; it is \[16, 80\]",
        ),
        (
            {WEIGHT: make_weight(), BIAS: torch.zeros(16)},
            "must hold target_proj.weight, as pard2_proj_bias .* it holds target_proj.bias, target_proj.weight",
        ),
    ],
    ids=["missing", "shape", "bias"],
)
def test_broken_target_proj(warp_model: Any, message: str, tmp_path: Path) -> None:
    folder = save_draft(QWEN3_8B, tmp_path, warp_model=warp_model)
    with pytest.raises(CheckpointError, match=message):
        target_proj_of(folder, load_config(str(folder)))


def test_a_draft_of_a_deeper_target(tmp_path: Path) -> None:
    """Qwen3-32B is as wide as Qwen3-14B, and drafts from its features are all rejected."""
    draft = save_draft(QWEN3_14B, tmp_path / QWEN3_14B.short_name)
    features = read_checkpoint(str(draft), load_config(str(draft))).features
    config = make_target(QWEN3_14B).config.to_dict() | {"num_hidden_layers": 64}
    assert choose_mode(str(draft), features, "Qwen/Qwen3-14B", config).mode == "dependent"
    mode, reason = choose_mode(str(draft), features, "Qwen/Qwen3-32B", config)
    assert mode == "independent"
    assert reason.endswith("takes features of 'Qwen3-14B', and the target is 'Qwen/Qwen3-32B'")
