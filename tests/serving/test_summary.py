"""The line that an engine logs, from made-up engines; tests/serving/test_watch.py reads it off real ones."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config.compilation import CUDAGraphMode

from vllm_pard.pard2 import FeatureConfig
from vllm_pard.process import PARD_LOG_LINE
from vllm_pard.serving import summary

FEATURES = FeatureConfig(target_layers=(-1, -8, -16, -24), scale=0.02, target_dim=16, has_bias=False, target=None)


def head(*, is_needed: bool, in_8_bits: bool = False, is_cuda: bool = True) -> Any:
    fused = SimpleNamespace(weight_scale=1.0 if in_8_bits else None, weight=SimpleNamespace(is_cuda=is_cuda))
    return SimpleNamespace(fused=fused, is_needed=is_needed)


class Layers(dict[str, Any]):
    """Attention layers by name, each on the backend given for it."""

    def __init__(self, backends: dict[str, str]) -> None:
        super().__init__({name: self.layer(backend) for name, backend in backends.items()})

    @staticmethod
    def layer(backend: str) -> Any:
        from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

        class Layer(AttentionLayerBase):
            def get_attn_backend(self) -> Any:
                return SimpleNamespace(get_name=lambda: backend)

            def get_kv_cache_spec(self, vllm_config: Any) -> Any:
                return None

        return Layer()


def config(mode: CUDAGraphMode, *, enforce_eager: bool = False, **spec: Any) -> Any:
    layers = {"model.0": "FLASH_ATTN", "model.1": "FLASHINFER", "draft.0": "CUSTOM", "draft.1": "CUSTOM"}
    defaults = {"model": "amd/draft", "num_speculative_tokens": 8, "mask_token_id": 7, "draft_vocab": None}
    defaults |= {"features": None, "mode_reason": None, "draft_depth": 8, "tree_depth": None}
    return SimpleNamespace(
        compilation_config=SimpleNamespace(cudagraph_mode=mode, static_forward_context=Layers(layers) | {"moe": 0}),
        model_config=SimpleNamespace(enforce_eager=enforce_eager),
        speculative_config=SimpleNamespace(**(defaults | {"runner": "v2", "enforce_eager": None} | spec)),
    )


class Shape:
    """A key of a dict of graphs; two K may have a graph of one size each."""

    def __init__(self, num_reqs: int) -> None:
        self.num_reqs = num_reqs


def speculator(num_reqs: list[int] | None = None, pieces: tuple[int, ...] = (), why: str | None = None) -> Any:
    graphs = SimpleNamespace(
        graphs={Shape(size): 0 for size in num_reqs or []}, piecewise=[SimpleNamespace(num_tokens=n) for n in pieces]
    )
    attention = SimpleNamespace(why_no_graph=lambda width: why and f"{why} {width}")
    return SimpleNamespace(
        draft_attn_layer_names={"draft.0", "draft.1"},
        forward=SimpleNamespace(graphs=graphs, attention=attention),
        depth=8,
        head=None,
    )


def of_v2(speculator: Any, **options: Any) -> summary.Summary:
    options = {"mode": CUDAGraphMode.FULL_AND_PIECEWISE} | options
    return summary.of_engine(config(**options), SimpleNamespace(speculator=speculator))


def test_one_line_that_the_log_is_searched_for() -> None:
    line = of_v2(speculator([1, 2, 2, 4], (16, 32))).line
    assert re.fullmatch(PARD_LOG_LINE, line)
    assert line.startswith(
        "PARD: draft amd/draft, K=8 draft tokens in one forward, mask token 7, target-independent; vLLM "
    )
    assert line.endswith(
        "; attention of the target FLASHINFER and FLASH_ATTN, of the draft CUSTOM; "
        "draft graphs: 4 of whole steps, for 1, 2, 4 requests and 2 in pieces, for 16, 32 rows; "
        "draft tokens from logits"
    )


def test_trees() -> None:
    line = of_v2(speculator(), tree_depth=8, num_speculative_tokens=32).line
    assert re.fullmatch(PARD_LOG_LINE, line)
    assert "K=8 draft tokens in one forward as trees of 32 nodes, mask token 7" in line


@pytest.mark.parametrize(
    ("features", "reason", "words"),
    [
        (FEATURES, "asked for", "PARD-2, dependent: reads layers -1, -8, -16, -24 of the target"),
        (None, "there is no target_proj", "PARD-2, independent: there is no target_proj"),
    ],
)
def test_modes_of_a_pard2_draft(features: FeatureConfig | None, reason: str, words: str) -> None:
    line = of_v2(speculator(), features=features, mode_reason=reason).line
    assert f", mask token 7, {words}; vLLM" in line


def test_many_sizes_are_cut_short() -> None:
    assert of_v2(speculator(list(range(1, 58)))).graphs == "57 of whole steps, for 1, 2, 3, ..., 57 requests"


@pytest.mark.parametrize(
    ("options", "why", "reason"),
    [
        ({"enforce_eager": True}, "rows:", "enforce_eager is set"),
        ({"mode": CUDAGraphMode.PIECEWISE}, "rows:", "cudagraph_mode is PIECEWISE"),
        ({}, "rows:", "rows: 16"),
        ({}, None, "no size in cudagraph_capture_sizes has room for a step of the draft"),
    ],
)
def test_why_there_are_no_graphs(options: dict[str, Any], why: str | None, reason: str) -> None:
    assert of_v2(speculator(why=why), **options).graphs == f"none, {reason}"


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (None, "logits"),
        (head(is_needed=True), "the fused lm_head"),
        (head(is_needed=True, in_8_bits=True), "the fused lm_head in 8 bits"),
        (head(is_needed=False), "logits or the fused lm_head, as measured"),
        (head(is_needed=False, is_cuda=False), "logits"),
    ],
)
def test_head(chosen: Any, words: str) -> None:
    drafting = speculator()
    drafting.head = chosen
    assert of_v2(drafting).head == words
    assert of_v2(drafting, draft_vocab="ids.json").head == f"{words} trimmed by ids.json"


def test_v1() -> None:
    shapes = {CUDAGraphMode.PIECEWISE: [SimpleNamespace(num_tokens=size) for size in (1, 8)], CUDAGraphMode.FULL: []}
    drafter = SimpleNamespace(
        _draft_attn_layer_names={"draft.0"}, cudagraph_dispatcher=SimpleNamespace(cudagraph_keys=shapes)
    )
    found = summary.of_engine(config(CUDAGraphMode.PIECEWISE, runner="v1"), SimpleNamespace(drafter=drafter))
    assert (found.runner, found.graphs, found.head) == ("v1", "2 in pieces, for 1, 8 rows", "logits")
    shapes.clear()
    found = summary.of_engine(config(CUDAGraphMode.NONE, runner="v1"), SimpleNamespace(drafter=drafter))
    assert found.graphs == "none, cudagraph_mode is NONE"
