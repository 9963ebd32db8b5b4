"""warp_model.bin and its safetensors twin."""

import errno
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vllm_pard.checkpoint import CheckpointError, Loading, PardCheckpoint
from vllm_pard.files import OutputError
from vllm_pard.pard2 import FeatureConfig, WantedMode
from vllm_pard.target_proj import (
    BIAS,
    SAFETENSORS_FILE,
    TORCH_FILE,
    WEIGHT,
    TargetProj,
    TargetProjMissing,
    check_mode,
    read_target_proj,
    target_proj_for,
    write_target_proj,
)

HIDDEN_SIZE, TARGET_DIM = 4, 12
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def features(has_bias: bool = False) -> FeatureConfig:
    return FeatureConfig(target_layers=(-1, -8), scale=0.02, target_dim=TARGET_DIM, has_bias=has_bias, target=None)


def read(folder: Path, has_bias: bool = False) -> TargetProj:
    return read_target_proj(str(folder), features(has_bias), HIDDEN_SIZE)


def weight(seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(HIDDEN_SIZE, TARGET_DIM, generator=torch.Generator().manual_seed(seed)).to(dtype)


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("only", [None, TORCH_FILE, SAFETENSORS_FILE])
def test_what_is_written_is_read(tmp_path: Path, dtype: torch.dtype, has_bias: bool, only: str | None) -> None:
    bias = torch.arange(HIDDEN_SIZE).to(dtype) if has_bias else None
    write_target_proj(tmp_path, weight(dtype=dtype), bias)
    written = files_in(tmp_path)
    assert written == {tmp_path / TORCH_FILE, tmp_path / SAFETENSORS_FILE}
    if only is not None:
        (written - {tmp_path / only}).pop().unlink()
    target_proj = read(tmp_path, has_bias)
    assert target_proj.features == features(has_bias)
    assert target_proj.weight.dtype == dtype
    assert torch.equal(target_proj.weight, weight(dtype=dtype))
    assert (target_proj.bias is None) if bias is None else torch.equal(target_proj.bias, bias)


@pytest.mark.parametrize("is_turned", [False, True])
def test_a_view_of_a_parameter(tmp_path: Path, is_turned: bool) -> None:
    whole = torch.nn.Parameter(torch.randn(1000, HIDDEN_SIZE if is_turned else TARGET_DIM))
    view = whole[:TARGET_DIM].T if is_turned else whole[:HIDDEN_SIZE]
    write_target_proj(tmp_path, view)
    assert torch.equal(read(tmp_path).weight, view)
    assert all(path.stat().st_size < 4000 for path in files_in(tmp_path)), "all the memory that the view is of"
    assert not torch.load(tmp_path / TORCH_FILE)[WEIGHT].requires_grad


def test_safetensors_come_first(tmp_path: Path) -> None:
    torch.save({WEIGHT: weight(seed=1)}, tmp_path / TORCH_FILE)
    (tmp_path / SAFETENSORS_FILE).parent.mkdir(exist_ok=True)
    save_file({WEIGHT: weight(seed=2)}, tmp_path / SAFETENSORS_FILE)
    assert torch.equal(read(tmp_path).weight, weight(seed=2))


def fail_at(monkeypatch: pytest.MonkeyPatch, module: Any, function: str, number: int) -> None:
    """The disk is full at the call of this number."""
    original, calls = getattr(module, function), []

    def full(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*arguments)

    monkeypatch.setattr(module, function, full)


@pytest.mark.parametrize("number", [1, 2])
def test_a_full_disk_leaves_the_old_ones(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write_target_proj(tmp_path, weight(seed=1))
    before = {path: path.read_bytes() for path in files_in(tmp_path)}
    fail_at(monkeypatch, Path, "write_bytes", number)
    with pytest.raises(OutputError, match=r"can't write target_proj into .*: No space left on device"):
        write_target_proj(tmp_path, weight(seed=2))
    assert {path: path.read_bytes() for path in files_in(tmp_path)} == before


@pytest.mark.parametrize("number", [1, 2])
def test_files_are_whole_whenever_it_stops(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write_target_proj(tmp_path, weight(seed=1))
    original, calls = os.replace, []

    def killed(source: Path, place: Path) -> None:
        calls.append(source)
        if len(calls) == number:
            raise KeyboardInterrupt
        original(source, place)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_target_proj(tmp_path, weight(seed=2))
    for name in (SAFETENSORS_FILE, TORCH_FILE):  # read in turn
        target_proj = read(tmp_path)
        assert any(torch.equal(target_proj.weight, weight(seed)) for seed in (1, 2))
        (tmp_path / name).unlink()


def test_folders_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, reason in (("missing", "No such file or directory"), ("file", "Not a directory")):
        with pytest.raises(OutputError, match=f"can't write target_proj into .*{folder}': {reason}"):
            write_target_proj(tmp_path / folder, weight())


def test_missing(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    message = f"dependent mode needs {SAFETENSORS_FILE} or {TORCH_FILE} of the PARD-2 draft .*, and there is neither"
    with pytest.raises(CheckpointError, match=message) as caught:
        read(tmp_path)
    assert str(caught.value).endswith("independent mode needs none")
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="there is no model folder"):
        read(tmp_path / "missing")


def test_hub_is_asked_as_the_engine_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def remember(*arguments: Any, **options: Any) -> str:
        asked.append((arguments, options))
        if arguments[1] == SAFETENSORS_FILE:
            raise OSError("no such file there")
        return str(tmp_path / TORCH_FILE)

    torch.save({WEIGHT: weight()}, tmp_path / TORCH_FILE)
    monkeypatch.setattr("transformers.utils.cached_file", remember)
    read_target_proj("org/draft", features(), HIDDEN_SIZE, Loading(revision="abc", token="secret"))
    options = {"revision": "abc", "token": "secret"}
    assert asked == [(("org/draft", SAFETENSORS_FILE), options), (("org/draft", TORCH_FILE), options)]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({WEIGHT: torch.zeros(TARGET_DIM, HIDDEN_SIZE)}, r"must be \[4, 12\], .*; it is \[12, 4\]; independent mode"),
        ({WEIGHT: torch.zeros(HIDDEN_SIZE * TARGET_DIM)}, r"must be \[4, 12\], .*; it is \[48\]"),
        (
            {WEIGHT: torch.zeros(HIDDEN_SIZE, TARGET_DIM).int()},
            "must be bfloat16, float16 or float32; it is torch.int32",
        ),
        ({WEIGHT: weight() / 0}, "has values that are not finite"),
        ({WEIGHT: weight(), "other": weight()}, "must hold target_proj.weight, .*; it holds other, target_proj.weight"),
        ({WEIGHT: weight(), BIAS: weight()[:, 0]}, "it holds target_proj.bias, target_proj.weight"),
        ({"weight": weight()}, "it holds weight"),
        ({}, "it holds nothing"),
    ],
)
def test_wrong_tensors(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    (tmp_path / SAFETENSORS_FILE).parent.mkdir()
    for save, name in ((torch.save, TORCH_FILE), (save_file, SAFETENSORS_FILE)):
        tensors = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
        save(tensors, tmp_path / name)
        with pytest.raises(CheckpointError, match=message) as caught:
            read(tmp_path)
        assert name in str(caught.value)


def test_a_bias_that_the_config_promises(tmp_path: Path) -> None:
    write_target_proj(tmp_path, weight())
    with pytest.raises(CheckpointError, match=f"must hold {WEIGHT} and {BIAS}, as pard2_proj_bias .*holds {WEIGHT}$"):
        read(tmp_path, has_bias=True)
    write_target_proj(tmp_path, weight(), torch.zeros(HIDDEN_SIZE + 1))
    with pytest.raises(CheckpointError, match=rf"{BIAS} in .* must be \[4\], .* it is \[5\]"):
        read(tmp_path, has_bias=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps([weight()]), "can't read target_proj from"),
        (b"version https://git-lfs.github.com/spec/v1", "can't read target_proj from"),
        (b"", "can't read target_proj from"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / SAFETENSORS_FILE).parent.mkdir()
    for name in (TORCH_FILE, SAFETENSORS_FILE):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value)


def test_pickles_that_are_no_weights(tmp_path: Path) -> None:
    torch.save([weight()], tmp_path / TORCH_FILE)
    with pytest.raises(CheckpointError, match="must hold a dict of tensors; it holds a list"):
        read(tmp_path)
    torch.save({WEIGHT: [[1.0] * TARGET_DIM] * HIDDEN_SIZE}, tmp_path / TORCH_FILE)
    with pytest.raises(CheckpointError, match="must be bfloat16, float16 or float32; it is list"):
        read(tmp_path)


def test_what_a_target_gets(tmp_path: Path) -> None:
    folder = str(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": HIDDEN_SIZE}))
    draft = PardCheckpoint(path=folder, vocab_size=9, mask_token_id=8, num_speculative_tokens=None, features=features())
    fitting, other = ({"hidden_size": size, "num_hidden_layers": 7} for size in (6, 8))
    missing = f"dependent mode needs {SAFETENSORS_FILE}"
    target_proj, reason = target_proj_for(draft, "target", fitting)
    assert target_proj is None
    assert reason.startswith(missing)
    with pytest.raises(CheckpointError, match=missing):
        target_proj_for(draft, "target", fitting, wanted="dependent")

    write_target_proj(tmp_path, weight())
    target_proj, reason = target_proj_for(draft, "target", fitting)
    assert target_proj is not None
    assert torch.equal(target_proj.weight, weight())
    assert "takes features of a target of this shape" in reason
    assert target_proj_for(draft, "target", fitting, wanted="independent") == (None, "asked for")
    target_proj, reason = target_proj_for(draft, "target", other)
    assert target_proj is None
    assert "hidden size 6, and 'target' has 8" in reason

    write_target_proj(tmp_path, weight().T)  # a damaged file is no missing one
    with pytest.raises(CheckpointError, match=r"it is \[12, 4\]"):
        target_proj_for(draft, "target", fitting)


def test_what_is_known_before_weights_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.utils.cached_file", lambda *_, **__: pytest.fail("the hub was asked"))
    target = {"hidden_size": 6, "num_hidden_layers": 7}

    def check(path: str, wanted: WantedMode, target_config: dict[str, int] = target) -> None:
        draft = PardCheckpoint(
            path=path, vocab_size=9, mask_token_id=8, num_speculative_tokens=None, features=features()
        )
        check_mode(draft, "target", target_config, wanted)

    check("org/draft", "dependent")  # its files are the engine's to look for
    with pytest.raises(CheckpointError, match="dependent mode is not possible: the draft 'org/draft' takes features"):
        check("org/draft", "dependent", target | {"hidden_size": 8})
    with pytest.raises(TargetProjMissing, match="there is neither; independent mode needs none"):
        check(str(tmp_path), "dependent")
    check(str(tmp_path), "auto")
    write_target_proj(tmp_path, weight())
    check(str(tmp_path), "dependent")


def test_a_draft_that_does_not_say_its_size(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    draft = PardCheckpoint(
        path=str(tmp_path), vocab_size=9, mask_token_id=8, num_speculative_tokens=None, features=features()
    )
    with pytest.raises(CheckpointError, match=r"needs a hidden_size in its config.json; there is none"):
        target_proj_for(draft, "target", {"hidden_size": 6, "num_hidden_layers": 7})


class Program:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["RUN_BY_PICKLE"],)


def test_nothing_in_it_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_BY_PICKLE", str(tmp_path / "was run"))
    torch.save({WEIGHT: Program()}, tmp_path / TORCH_FILE)
    with pytest.raises(CheckpointError, match="can't read target_proj from"):
        read(tmp_path)
    assert not (tmp_path / "was run").exists()
    torch.load(tmp_path / TORCH_FILE, weights_only=False)
    assert (tmp_path / "was run").exists()
