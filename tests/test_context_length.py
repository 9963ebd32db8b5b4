"""How long vLLM lets a prompt and its answer be, where that is clear from config.json and the engine's arguments."""

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_pard.bench import prepare
from vllm_pard.bench.options import BenchmarkError
from vllm_pard.context_length import context_length

CONFIG = {"max_position_embeddings": 512}
DEFAULT_ROPE = {"rope_theta": 10000.0, "rope_type": "default"}


@pytest.mark.parametrize(
    ("config", "options", "room"),
    [
        (CONFIG, {}, 512),
        (CONFIG | {"rope_scaling": None, "rope_parameters": DEFAULT_ROPE}, {}, 512),
        (CONFIG | {"rope_parameters": {"full_attention": DEFAULT_ROPE, "sliding_attention": DEFAULT_ROPE}}, {}, 512),
        (CONFIG, {"max_model_len": 64}, 64),
        (CONFIG | {"rope_scaling": {"type": "linear", "factor": 2.0}}, {"max_model_len": 1024}, 1024),
        (CONFIG, {"max_model_len": -1}, None),
        (CONFIG, {"max_model_len": "1k"}, None),
        (CONFIG, {"max_model_len": True}, None),
        (CONFIG | {"rope_scaling": {"type": "linear", "factor": 2.0}}, {}, None),
        (CONFIG | {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, {}, None),
        (CONFIG | {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, {}, None),
        (CONFIG | {"rope_parameters": {"rope_theta": 1.0, "factor": 4.0}}, {}, None),
        (CONFIG | {"text_config": {"max_position_embeddings": 64}}, {}, None),
        (CONFIG | {"model_max_length": 4096}, {}, None),
        ({}, {}, None),
    ],
)
def test_room(config: dict[str, Any], options: dict[str, Any], room: int | None) -> None:
    assert context_length(config, options) == room


def test_a_comparison_refuses_only_what_surely_does_not_fit() -> None:
    def check(config: dict[str, Any], **engine_args: Any) -> None:
        options = SimpleNamespace(engine_args=engine_args, sampling=SimpleNamespace(max_tokens=100))
        prepare._check_lengths(
            options, SimpleNamespace(target_config=config), [SimpleNamespace(id="a", token_ids=[1] * 450)]
        )

    with pytest.raises(BenchmarkError, match="1 of 1 prompts leave no room for 100 new tokens in 512"):
        check(CONFIG)
    with pytest.raises(BenchmarkError, match="in 549"):
        check(CONFIG, max_model_len=549)
    check(CONFIG, max_model_len=550)
    check(CONFIG, max_model_len="1k")  # vLLM's own spelling
    check(CONFIG | {"rope_scaling": {"type": "linear", "factor": 2.0}})
