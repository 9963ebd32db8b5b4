"""What is written where, and what is refused before anything is written."""

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import enlarge
import pytest
import torch
from shapes import LLAMA_3_3_70B, SHAPES, EnlargeError, shape_of

from vllm_pard.catalog import CatalogError, choose_draft, find_draft
from vllm_pard.checkpoint import CheckpointError, load_config, read_checkpoint
from vllm_pard.demo import MODELS, demo_path

Run = Callable[..., int]
TINY = SHAPES["tiny"]


def test_the_same_seed_gives_the_same_files(tiny: Path, run: Run, tmp_path: Path) -> None:
    assert run(tmp_path / "same") == run(tmp_path / "other", "--seed", "9") == 0
    for name in MODELS:
        written = [(folder / name / "model.safetensors").read_bytes() for folder in (tiny, tmp_path / "same")]
        assert written[0] == written[1]
        assert written[0] != (tmp_path / "other" / name / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama-3.1-8b", (8.03, 1.24)),
        ("llama-3.3-70b", (70.55, 1.24)),
        ("qwen3-8b", (8.19, 0.6)),
        ("300m", (0.29, 0.02)),
    ],
)
def test_named_shapes_are_the_real_models(name: str, billions: tuple[float, float], tmp_path: Path) -> None:
    for source, shape, wanted in zip(
        ("target", "draft"), (SHAPES[name].target, SHAPES[name].draft), billions, strict=True
    ):
        plan = enlarge.plan_model(demo_path(source), tmp_path, shape, torch.bfloat16, {})
        assert plan.num_parameters / 1e9 == pytest.approx(wanted, abs=0.006)
        assert plan.num_bytes == 2 * plan.num_parameters


def test_configs(tiny: Path) -> None:
    draft = str(tiny / "draft")
    checkpoint = read_checkpoint(draft, load_config(draft))
    assert (checkpoint.mask_token_id, checkpoint.num_speculative_tokens) == (3, 8)
    target = load_config(str(tiny / "target"))
    assert choose_draft(str(tiny / "target"), target, draft=draft) == (checkpoint, 8)
    with pytest.raises(CatalogError, match="no PARD draft is known"):  # not the small bundled one
        find_draft(str(tiny / "target"), target)
    assert target["vllm_pard_enlarged"] == {"shape": "tiny", "seed": 0, "device": "cpu"}
    assert target["rms_norm_eps"] == pytest.approx(1e-6 * 256 / 320)
    assert shape_of(target) == TINY.target
    assert target["rope_parameters"] == load_config(str(demo_path("target")))["rope_parameters"]


def test_an_interrupted_run_leaves_no_model(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    save_file = enlarge.save_file

    def interrupted(tensors: Any, path: Path, **options: Any) -> None:
        save_file(tensors, path, **options)
        if path.parent.name == "draft":
            raise KeyboardInterrupt

    monkeypatch.setattr(enlarge, "save_file", interrupted)
    assert run(tmp_path / "pair") == 130
    assert "is unfinished: remove it" in capsys.readouterr().err
    assert (tmp_path / "pair" / "draft" / "model.safetensors").exists()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_config(str(tmp_path / "pair" / "draft"))
    assert run(tmp_path / "pair") == 1
    assert "must be a new or an empty folder" in capsys.readouterr().err


def git(folder: Path, *command: str) -> None:
    subprocess.run(["git", "-C", str(folder), *command], check=True, capture_output=True)


def test_nothing_gets_into_git(run: Run, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init")
    (tmp_path / ".gitignore").write_text("/ignored/\n")
    assert run(tmp_path / "sub" / "pair") == 1
    assert "must be outside git or ignored by it" in capsys.readouterr().err
    assert not (tmp_path / "sub").exists()
    assert run(tmp_path / "ignored" / "pair") == 0
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert run(tmp_path / "ignored" / "other") == 1


def test_refused_outputs(run: Run, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("")
    for name in ("file", "full"):
        assert run(tmp_path / name) == 1
        assert "must be a new or an empty folder" in capsys.readouterr().err
    assert run(tmp_path / "file" / "pair") == 1
    assert "can't write" in capsys.readouterr().err
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert run(tmp_path / "new" / "pair") == 1
    assert "GB of disk" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_an_unknown_shape_names_the_known_ones(tmp_path: Path, capsys: Any) -> None:
    assert enlarge.main(["--shape", "9b", "--output", str(tmp_path / "pair"), "--device", "cpu"]) == 1
    assert "one of llama-3.1-8b, llama-3.3-70b, qwen3-8b, 300m, tiny; got '9b'" in capsys.readouterr().err


def test_a_missing_gpu_is_named(run: Run, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(tmp_path / "pair", "--device", "cuda") == 1
    assert "needs a GPU, and torch sees none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 256}, "hidden_size must be 257 or more to hold 'target'; it is 256"),
        ({"intermediate_size": 767}, "intermediate_size must be 768 or more"),
        ({"num_hidden_layers": 5}, "num_hidden_layers must be 6 or more"),
        ({"num_attention_heads": 3, "num_key_value_heads": 3}, "num_attention_heads must be 4 or more"),
        ({"num_key_value_heads": 2}, "num_key_value_heads must be 4 or more"),
        ({"num_attention_heads": 11}, "must be a multiple of num_key_value_heads; got 11 and 5"),
        ({"head_dim": 32}, "head_dim must be 64 or more"),
        ({"head_dim": 96}, "head_dim must be a multiple of 64"),
        ({"vocab_size": 2047}, "vocab_size must be 2048 or more"),
    ],
)
def test_a_shape_without_room_is_refused(changes: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(EnlargeError, match=message):
        enlarge.plan_model(demo_path("target"), tmp_path, replace(TINY.target, **changes), torch.float32, {})


def test_untied_embeddings_cannot_be_tied(tiny: Path, tmp_path: Path) -> None:
    larger = replace(LLAMA_3_3_70B, tie_word_embeddings=True)
    with pytest.raises(EnlargeError, match="use an untied shape"):
        enlarge.plan_model(tiny / "target", tmp_path, larger, torch.float32, {})
