"""Requests that are refused, each with a sentence."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from vllm_pard.reference.engine import Generation, GenerationError, ReferenceEngine

Run = Callable[..., list[Generation]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": [[1], []]}, "at least one token"),
        ({"prompts": [[1, 11]]}, "from 0 to 10"),
        ({"prompts": [[1], [-1]]}, "from 0 to 10"),
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more; got 0"),
        ({"max_new_tokens": 127}, "the target has room for 128 tokens; 2 prompt tokens and 127"),
        ({"temperature": -0.5}, r"temperature must be a number from 0 \(greedy\) up; got -0.5"),
        ({"temperature": float("nan")}, "temperature must be a number from 0"),
        ({"temperature": float("inf")}, "temperature must be a number from 0"),
        ({"num_speculative_tokens": 0}, "num_speculative_tokens must be 1 or more; got 0"),
        ({"mask_token_id": None}, "needs a mask_token_id from 0 to 10; got None"),
        ({"mask_token_id": 11}, "needs a mask_token_id from 0 to 10; got 11"),
        ({"draft": None}, "'pard' needs a draft model"),
        ({"draft": None, "method": "vsd"}, "'vsd' needs a draft model"),
        ({"method": "eagle"}, r"method must be one of ar, ar\+, vsd, pard, pard2; got 'eagle'"),
    ],
)
def test_bad_requests(changes: dict[str, Any], message: str, run: Run) -> None:
    with pytest.raises(GenerationError, match=message):
        run(**({"prompts": [[1, 2]]} | changes))


def test_room_of_an_engine(target: LlamaForCausalLM, draft: LlamaForCausalLM) -> None:
    engine = ReferenceEngine(target, draft, method="vsd", num_speculative_tokens=4, max_length=20)
    assert len(engine.generate([[1, 2]], max_new_tokens=18)[0].token_ids) == 18
    message = r"this engine \(max_length\) has room for 20 tokens; 2 prompt tokens and 19 new ones are more"
    with pytest.raises(GenerationError, match=message):
        engine.generate([[1, 2]], max_new_tokens=19)


def test_plain_transformers_is_never_compiled(target: LlamaForCausalLM) -> None:
    with pytest.raises(GenerationError, match=r"'ar' is never compiled: leave `compiled` out, or use 'ar\+'"):
        ReferenceEngine(target, method="ar", max_length=20, compiled=True)


def test_attention_that_takes_no_mask(target: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(GenerationError, match=r"attn_implementation='sdpa'; got 'flash_attention_2'"):
        ReferenceEngine(target, method="ar+", max_length=20)


def test_layers_that_need_another_cache(target: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target.config, "layer_types", ["full_attention", "linear_attention"], raising=False)
    message = r"runs full_attention and sliding_attention; this model \(llama\) has linear_attention"
    with pytest.raises(GenerationError, match=message):
        ReferenceEngine(target, method="ar+", max_length=20)
