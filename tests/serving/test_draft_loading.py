"""Which attention the draft gets where nobody has chosen, and which of vLLM's backends that is about."""

import importlib.util
import logging
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from notices import notice
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend
from vllm_releases import NEWEST, Unavailable, cached_sources

from vllm_pard.serving.draft import loading

FOLDER = "vllm/v1/attention/backends"
# They hold states, not keys and values: no draft has them.
OF_STATE_SPACES = {"gdn_attn", "linear_attn", "mamba_attn", "short_conv_attn"}


def backends_with_a_threshold(root: Any) -> set[str]:
    """Modules whose builders say up to how many rows a request is a decode."""
    sources = {path.name.removesuffix(".py"): path.read_text() for path in (root / FOLDER).iterdir() if path.is_file()}
    says = ("_init_reorder_batch_threshold(", "reorder_batch_threshold: int = 1")
    return {name for name, text in sources.items() if any(words in text for words in says)}


def test_of_the_installed_release() -> None:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    found = backends_with_a_threshold(Path(spec.origin).parents[1])
    assert {"flashinfer", "rocm_aiter_fa"} <= found - OF_STATE_SPACES <= loading.LIMIT_DECODES


@pytest.mark.network
def test_of_the_newest_release(request: pytest.FixtureRequest) -> None:
    try:
        sources = cached_sources(NEWEST)
    except (Unavailable, OSError) as error:
        notice(request.config, f"backends not read from vLLM {NEWEST}: {error}")
        pytest.skip(str(error))
    assert backends_with_a_threshold(zipfile.Path(sources)) - OF_STATE_SPACES == loading.LIMIT_DECODES


class Limited(TritonAttentionBackend):
    """As FlashInfer's, where FlashInfer is not installed."""

    @staticmethod
    def get_builder_cls() -> type[Any]:
        return type("Builder", (), {"__module__": f"{loading.BACKENDS}.flashinfer"})


def config(*, mode: CUDAGraphMode = CUDAGraphMode.FULL_AND_PIECEWISE, enforce_eager: bool | None = None) -> Any:
    return SimpleNamespace(
        compilation_config=SimpleNamespace(cudagraph_mode=mode),
        speculative_config=SimpleNamespace(enforce_eager=enforce_eager),
    )


def choose(
    monkeypatch: pytest.MonkeyPatch, given: Any, *, depth: int = 8, custom: Any = Limited, **options: Any
) -> Any:
    def selected(backend: Any) -> Any:
        if backend is None:
            return given
        if isinstance(custom, Exception):
            raise custom
        return custom

    monkeypatch.setattr(loading, "draft_vllm_config", lambda vllm_config, backend: backend)
    monkeypatch.setattr(loading, "selected_backend", selected)
    return loading.replacement_backend(config(**options), depth)


def test_custom_where_graphs_could_not_replay(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("vllm").propagate = True
    with caplog.at_level(logging.INFO):
        assert choose(monkeypatch, Limited) == AttentionBackendEnum.CUSTOM
    assert "the draft's attention is CUSTOM, since Limited can't replay its 16 rows a request" in caplog.text


@pytest.mark.parametrize(
    ("given", "options"),
    [
        pytest.param(TritonAttentionBackend, {}, id="any other backend"),
        pytest.param(Limited, {"depth": 1}, id="2K rows are 1 + K"),
        pytest.param(Limited, {"enforce_eager": True}, id="no graphs of the draft are wanted"),
        pytest.param(Limited, {"mode": CUDAGraphMode.PIECEWISE}, id="no graphs of whole steps are wanted"),
        pytest.param(Limited, {"custom": ValueError("head_size not supported")}, id="ours can't run the draft"),
    ],
)
def test_else_as_vllm_chooses(monkeypatch: pytest.MonkeyPatch, given: Any, options: dict[str, Any]) -> None:
    assert choose(monkeypatch, given, **options) is None
