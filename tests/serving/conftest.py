"""Shared by tests that run vLLM."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine import ON_GPU
from notices import notice
from vllm_releases import NEWEST, Unavailable, engine_environment


@pytest.fixture(scope="session")
def newest_vllm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An engine's environment, for the newest supported vLLM: GPUs get it, and there is no CPU wheel of it."""
    if ON_GPU:
        return {}
    try:
        return engine_environment(NEWEST, tmp_path_factory.mktemp("vllm"))
    except (Unavailable, OSError) as error:
        line = f"model runner V2 was tested on the installed vLLM instead of {NEWEST}: {error}"
        notice(request.config, line)
        return {}


@pytest.fixture(scope="module", params=["newest", pytest.param("installed", marks=pytest.mark.slow)])
def release(request: pytest.FixtureRequest) -> dict[str, str]:
    """The engine's environment, for each supported vLLM."""
    return request.getfixturevalue("newest_vllm") if request.param == "newest" else {}  # type: ignore[no-any-return]


@pytest.fixture(
    params=[("v1", None), ("v2", "newest_vllm"), pytest.param(("v2", None), marks=pytest.mark.slow)],
    ids=["V1", "V2", "V2, installed"],
)
def engine(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Model runner and environment of an engine, as `run_scenario` takes them: V1, and V2 on each supported vLLM."""
    runner, environment = request.param
    return {"runner": runner, "environment": request.getfixturevalue(environment) if environment else {}}


@pytest.fixture
def configure(tiny_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """vLLM's engine config for the tiny pair with a speculative config and engine options."""
    from vllm.engine.arg_utils import EngineArgs

    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    target, draft = tiny_pair

    def configure(given: dict[str, Any], **options: Any) -> Any:
        spec = {"method": "pard", "model": str(draft)} | given
        if spec["model"] is None:
            del spec["model"]
        options = {"model": str(target), "dtype": "float32", "max_model_len": 128, "enforce_eager": True} | options
        return EngineArgs(speculative_config=spec, **options).create_engine_config()

    return configure


@pytest.fixture
def _triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where vLLM takes model runner V2."""
    monkeypatch.setattr("vllm.triton_utils.importing.HAS_TRITON", True)
    monkeypatch.setattr("vllm.config.vllm.HAS_TRITON", True)
