"""What `trainer.push_to_hub` uploads: the finished draft with its README and receipt, and nothing of this machine."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.utils import filter_repo_objects
from training_world import options
from transformers import AutoModelForCausalLM, AutoTokenizer

from vllm_pard.checkpoint import load_config, read_checkpoint
from vllm_pard.draft_vocab_file import read_draft_vocab
from vllm_pard.errors import PardError
from vllm_pard.target_proj import read_target_proj
from vllm_pard.training.options.train_config import from_mapping
from vllm_pard.training.run import train

PARD2 = {"features": {"layers": [-1, -2], "dropout": 0.3}, "loss": {"ce": 0.1, "kl": 1.0, "weights": "cat"}}


class Hub:
    """In place of huggingface_hub's client: keeps what it is given in a folder, by the library's own patterns."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.calls = folder, []
        monkeypatch.setattr(HfApi, "create_repo", self.create_repo)
        monkeypatch.setattr(HfApi, "upload_folder", self.upload_folder)

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        self.calls.append(("create", repo_id, options.get("private")))
        return SimpleNamespace(repo_id=f"me/{repo_id.removeprefix('me/')}")

    def upload_folder(
        self, *, repo_id: str, folder_path: Any, allow_patterns: Any = None, ignore_patterns: Any = None, **_: Any
    ) -> str:
        source = Path(folder_path)
        paths = [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()]
        chosen = filter_repo_objects(paths, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        for path in chosen:
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / path, self.folder / path)
        self.calls.append(("upload", repo_id))
        return f"https://hub/{repo_id}/commit/1"


def asked(folder: Path, **changes: Any) -> dict[str, Any]:
    given = options(folder, **changes)
    trainer = {"max_steps": 4, "save_steps": 2, "push_to_hub": True, "report_to": ["tensorboard"]}
    return given | {"trainer": given["trainer"] | trainer}


def losses(folder: Path) -> list[tuple[float, float]]:
    log = json.loads((folder / "receipt.json").read_text())["log"]
    return [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(tmp_path / "hub", monkeypatch)


def test_the_finished_draft_is_uploaded_once(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "run" / "runs"))
    given = asked(tmp_path, draft_vocab=64, **PARD2)
    (tmp_path / "questions.jsonl").open("a").write("{\n")
    given["data"] |= {"malformed": "skip"}
    lines: list[str] = []
    folder = train(from_mapping(given), lines.append)
    assert hub.calls == [("create", "run", None), ("upload", "me/run")]
    assert "and at https://hub/me/run/commit/1" in lines
    files = {str(path.relative_to(hub.folder)) for path in hub.folder.rglob("*") if path.is_file()}
    kept = {path.name for path in folder.iterdir() if path.is_file()}
    assert kept - files == {"run.json"}
    assert files < kept  # nothing of a checkpoint or of TensorBoard, which are there:
    assert {"runs", "checkpoint-4"} <= {path.name for path in folder.iterdir() if path.is_dir()}
    assert "receipt.json" in files
    assert "for target, trained with vllm-pard" in (hub.folder / "README.md").read_text()
    assert [path for path in hub.folder.iterdir() if str(tmp_path).encode() in path.read_bytes()] == []


def test_what_was_uploaded_is_a_whole_draft(tmp_path: Path, hub: Hub) -> None:
    train(from_mapping(asked(tmp_path, draft_vocab=64, **PARD2)), lambda line: None)
    shutil.rmtree(tmp_path / "run")
    draft = read_checkpoint(str(hub.folder), load_config(str(hub.folder)))
    assert draft.format == "pard2"
    assert draft.features is not None
    assert read_target_proj(str(hub.folder), draft.features, 64).weight.shape == (64, 128)
    model = AutoModelForCausalLM.from_pretrained(hub.folder)
    assert model(torch.tensor([AutoTokenizer.from_pretrained(hub.folder)("3: def").input_ids])).logits.isfinite().all()
    assert len(read_draft_vocab(str(hub.folder / "draft_vocab.json"), 264)) > 10


def test_a_name_and_privacy_are_trainers_own_options(tmp_path: Path, hub: Hub) -> None:
    given = asked(tmp_path)
    given["trainer"] |= {"hub_model_id": "me/draft", "hub_private_repo": True}
    train(from_mapping(given), lambda line: None)
    assert hub.calls == [("create", "me/draft", True), ("upload", "me/draft")]


def test_no_repository_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("Token is required, but no token found")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(PardError, match=r"it can't be made \(Token is required, but no token found\): log in with"):
        train(from_mapping(asked(tmp_path)), lambda line: None)
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_an_upload_that_fails_is_made_up_for(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("the line is down")

    with monkeypatch.context() as patch:
        patch.setattr(HfApi, "upload_folder", fail)
        with pytest.raises(
            PardError, match=r"the draft is in '.*run' and can't be uploaded to 'me/run' \(the line is d"
        ):
            train(from_mapping(asked(tmp_path)), lambda line: None)
    before = losses(tmp_path / "run")
    train(from_mapping(asked(tmp_path)), lambda line: None)
    assert hub.calls[-1] == ("upload", "me/run")
    assert losses(hub.folder) == before
    assert len(before) == 2


@pytest.mark.parametrize(("name", "value"), [("hub_token", "hf_secret"), ("hub_strategy", "every_save")])
def test_options_that_would_upload_or_keep_too_much(tmp_path: Path, name: str, value: str) -> None:
    given = asked(tmp_path)
    given["trainer"] |= {name: value}
    with pytest.raises(PardError, match=f"trainer.{name} is set by") as refusal:
        from_mapping(given)
    assert value not in str(refusal.value)
