"""Prompt sets from the hub. There is no network here: the two calls that would need it are replaced."""

import builtins
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import datasets
import huggingface_hub
import pytest

from vllm_pard.bench.prompt_sets import PromptSet, load_prompts
from vllm_pard.prompts import PromptError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROW_OF_ANY_SET = {"prompt": "x", "question": "x", "problem": "x", "turns": ["x"]}
HUB_ARGUMENTS = {
    "humaneval": ("openai/openai_humaneval", "openai_humaneval", "test"),
    "gsm8k": ("openai/gsm8k", "main", "test"),
    "math-500": ("HuggingFaceH4/MATH-500", None, "test"),
    "mt-bench": ("philschmid/mt-bench", None, "train"),
    "speed-bench": ("nvidia/SPEED-Bench", "qualitative", "test"),
}


def load(name: str) -> PromptSet:
    return load_prompts(name, num_prompts=None, seed=0)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Serve these rows, or this error, instead of the hub; the list fills with the arguments of the calls."""

    def serve(answer: Any, *, offline: bool = False, cache: str = "") -> list[Any]:
        calls: list[Any] = []

        class Loaded(list[Any]):
            cache_files: ClassVar = [{"filename": cache}]

        def dataset_info(self: object, name: str, *, timeout: float) -> SimpleNamespace:
            calls.append((name, timeout))
            return SimpleNamespace(sha=COMMIT)

        def load_dataset(*arguments: object, **options: object) -> Loaded:
            calls.append((*arguments, options))
            if not isinstance(answer, list):
                raise answer
            return Loaded(answer)

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
        return calls

    return serve


@pytest.mark.parametrize("name", HUB_ARGUMENTS)
def test_public_set_from_the_hub(name: str, hub: Callable[..., list[Any]]) -> None:
    calls = hub([ROW_OF_ANY_SET])
    found = load(name)
    dataset, config, split = HUB_ARGUMENTS[name]
    assert calls == [(dataset, 5.0), (dataset, config, {"split": split, "revision": COMMIT})]
    [prompt] = found.prompts
    assert prompt.as_record["messages"][-1]["content"].endswith("x")
    assert found.source == ", ".join(part for part in (dataset, config, split, f"revision {COMMIT}") if part)


@pytest.mark.parametrize(
    ("cache", "revision"),
    [(f"/x/openai___gsm8k/main/0.0.0/{COMMIT}/gsm8k-test.arrow", COMMIT), ("/x/main/gsm8k.arrow", "unknown")],
)
def test_cached_copy_when_offline(cache: str, revision: str, hub: Callable[..., list[Any]]) -> None:
    calls = hub([ROW_OF_ANY_SET], offline=True, cache=cache)
    found = load("gsm8k")
    assert calls == [("openai/gsm8k", "main", {"split": "test", "revision": None})]
    assert found.source == f"openai/gsm8k, main, test, revision {revision}"


def hub_errors() -> list[Any]:
    exceptions, offline = datasets.exceptions, huggingface_hub.errors.OfflineModeIsEnabled
    return [
        (ConnectionError("Couldn't reach the Hub"), "Couldn't reach the Hub"),
        (TimeoutError(), "TimeoutError"),
        (offline("Cannot reach it: offline mode is enabled."), "Cannot reach it: offline mode is enabled"),
        (exceptions.DatasetNotFoundError("Dataset 'x' doesn't exist.\nMore."), "Dataset 'x' doesn't exist"),
        (ValueError("Unknown split"), "Unknown split"),
    ]


def test_empty_dataset(hub: Callable[..., list[Any]]) -> None:
    hub([])
    with pytest.raises(PromptError, match="'gsm8k' has no prompts in openai/gsm8k, main, test"):
        load("gsm8k")


@pytest.mark.parametrize("case", range(5))
def test_hub_failure(case: int, hub: Callable[..., list[Any]]) -> None:
    error, reason = hub_errors()[case]
    hub(error)
    with pytest.raises(PromptError) as caught:
        load("gsm8k")
    assert str(caught.value) == (
        f"can't get the prompt set 'gsm8k' from the Hugging Face hub: {reason}; download the test split of "
        "https://huggingface.co/datasets/openai/gsm8k and give gsm8k=FILE (.jsonl, .json, .parquet), "
        "or use an earlier download with HF_HUB_OFFLINE=1"
    )


def test_really_offline(tmp_path: Path) -> None:
    """The libraries read the variable when they are imported, so this takes a process of its own."""
    code = "from vllm_pard.bench.prompt_sets import load_prompts; load_prompts('gsm8k', num_prompts=1, seed=0)"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    last = done.stderr.strip().splitlines()[-1]
    assert "hub: HF_HUB_OFFLINE is set and there is no earlier download; download the test split" in last
    assert last.endswith("or unset HF_HUB_OFFLINE")


def test_datasets_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.parquet").touch()
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] in ("datasets", "pyarrow"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(PromptError, match=r"'gsm8k' .*: pip install 'vllm-pard\[bench\]', or give gsm8k=FILE$"):
        load("gsm8k")
    with pytest.raises(PromptError, match=r"'x.parquet' needs `datasets`: pip install 'vllm-pard\[bench\]'"):
        load(f"gsm8k={tmp_path / 'x.parquet'}")
    assert len(load("demo").prompts) > 0


def test_spec_bench_is_not_on_the_hub() -> None:
    with pytest.raises(PromptError, match=r"download https://raw\.\S+/question\.jsonl and give spec-bench=FILE$"):
        load("spec-bench")
