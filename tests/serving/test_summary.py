"""The line that an engine logs, from made-up engines; tests/serving/test_watch.py reads it off real ones."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.attention.backend import AttentionCGSupport

from vllm_pard.process import PARD_LOG_LINE
from vllm_pard.serving import summary

GREEDY_HEADS = {
    "logits": None,
    "the fused lm_head": SimpleNamespace(weight_scale=None),
    "the fused lm_head in 8 bits": SimpleNamespace(weight_scale=1.0),
}


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
    return SimpleNamespace(
        compilation_config=SimpleNamespace(cudagraph_mode=mode, static_forward_context=Layers(layers) | {"moe": 0}),
        model_config=SimpleNamespace(enforce_eager=enforce_eager),
        speculative_config=SimpleNamespace(**(defaults | {"runner": "v2", "enforce_eager": None} | spec)),
    )


def speculator(num_reqs: list[int] | None = None, support: AttentionCGSupport = AttentionCGSupport.ALWAYS) -> Any:
    graphs = SimpleNamespace(graphs={SimpleShape(size, i): 0 for i, size in enumerate(num_reqs or [])})
    return SimpleNamespace(
        draft_attn_layer_names={"draft.0", "draft.1"},
        graphs=graphs,
        attn_cg_support=SimpleNamespace(min_cg_support=support),
        head=None,
    )


class SimpleShape:
    def __init__(self, num_reqs: int, number: int) -> None:
        self.num_reqs, self.number = num_reqs, number


def of_v2(speculator: Any, **options: Any) -> summary.Summary:
    options = {"mode": CUDAGraphMode.FULL_AND_PIECEWISE} | options
    return summary.of_engine(config(**options), SimpleNamespace(speculator=speculator))


def test_one_line_that_the_log_is_searched_for() -> None:
    line = of_v2(speculator([1, 2, 2, 4])).line
    assert re.fullmatch(PARD_LOG_LINE, line)
    assert line.startswith(
        "PARD: draft amd/draft, K=8 draft tokens in one forward, mask token 7, target-independent; vLLM "
    )
    assert line.endswith(
        "; attention of the target FLASHINFER and FLASH_ATTN, of the draft CUSTOM; "
        "draft graphs: 4, for 1, 2, 4 requests; draft tokens from logits"
    )


def test_many_sizes_are_cut_short() -> None:
    assert of_v2(speculator(list(range(1, 58)))).graphs == "57, for 1, 2, 3, ..., 57 requests"


@pytest.mark.parametrize(
    ("options", "support", "reason"),
    [
        ({"enforce_eager": True}, AttentionCGSupport.ALWAYS, "enforce_eager is set"),
        ({"mode": CUDAGraphMode.PIECEWISE}, AttentionCGSupport.ALWAYS, "cudagraph_mode is PIECEWISE"),
        ({}, AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE, "the draft's attention can't be captured"),
        ({}, AttentionCGSupport.ALWAYS, "no size in cudagraph_capture_sizes has room for a step of the draft"),
    ],
)
def test_why_there_are_no_graphs(options: dict[str, Any], support: AttentionCGSupport, reason: str) -> None:
    assert of_v2(speculator(support=support), **options).graphs == f"none, {reason}"


@pytest.mark.parametrize("words", GREEDY_HEADS)
def test_head(words: str) -> None:
    drafting = speculator()
    drafting.head = GREEDY_HEADS[words]
    assert of_v2(drafting).head == words
    assert of_v2(drafting, draft_vocab="ids.json").head == f"{words} trimmed by ids.json"


def test_v1() -> None:
    shapes = {CUDAGraphMode.PIECEWISE: [SimpleNamespace(num_tokens=size) for size in (1, 8)], CUDAGraphMode.FULL: []}
    drafter = SimpleNamespace(
        _draft_attn_layer_names={"draft.0"}, cudagraph_dispatcher=SimpleNamespace(cudagraph_keys=shapes)
    )
    found = summary.of_engine(config(CUDAGraphMode.PIECEWISE, runner="v1"), SimpleNamespace(drafter=drafter))
    assert (found.runner, found.graphs, found.head) == ("v1", "2, for 1, 8 rows", "logits")
    shapes.clear()
    found = summary.of_engine(config(CUDAGraphMode.NONE, runner="v1"), SimpleNamespace(drafter=drafter))
    assert found.graphs == "none, cudagraph_mode is NONE"
