"""Whatever the draft does, the output is the target's own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from vllm_pard.metrics import AcceptanceStats
from vllm_pard.reference import engine
from vllm_pard.reference.cache import CachedModel
from vllm_pard.reference.engine import Generation, GenerationError

Run = Callable[..., Generation]
Prompts = list[list[int]]
Outputs = list[list[int]]


def transformers_greedy(target: Any, prompt_ids: list[int], max_new_tokens: int) -> list[int]:
    input_ids = torch.tensor([prompt_ids])
    output = target.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=0,
    )
    new_ids: list[int] = output[0, len(prompt_ids) :].tolist()
    return new_ids


def test_plain_is_transformers_greedy(target: LlamaForCausalLM, prompts: Prompts, plain_outputs: Outputs) -> None:
    assert plain_outputs == [transformers_greedy(target, prompt, len(plain_outputs[0])) for prompt in prompts]
    assert len({tuple(output) for output in plain_outputs}) > len(prompts) // 2  # the prompts matter


@pytest.mark.parametrize("num_speculative_tokens", range(1, 10))
@pytest.mark.parametrize("method", ["pard", "vsd"])
def test_drafts_change_nothing(
    method: str, num_speculative_tokens: int, run: Run, prompts: Prompts, plain_outputs: Outputs
) -> None:
    stats = AcceptanceStats()
    for prompt, expected in zip(prompts, plain_outputs, strict=True):
        generation = run(prompt, method=method, num_speculative_tokens=num_speculative_tokens)
        assert generation.token_ids == expected
        stats += generation.stats
    # Some drafts were rejected at once, some were accepted to the end.
    assert stats.accepted_per_position[0] < stats.num_drafts
    assert stats.accepted_per_position[-1] > 0


@pytest.mark.parametrize("method", ["ar", "pard", "vsd"])
def test_stops_after_the_first_end_of_sequence(method: str, run: Run, prompts: Prompts, plain_outputs: Outputs) -> None:
    for prompt, unstopped in zip(prompts, plain_outputs, strict=True):
        eos_token_id = unstopped[6]
        expected = unstopped[: unstopped.index(eos_token_id) + 1]
        generation = run(prompt, method=method, num_speculative_tokens=8, eos_token_ids=(100, eos_token_id))
        assert generation.token_ids == expected


@pytest.mark.parametrize("max_new_tokens", [1, 2, 7])
def test_never_more_than_asked_for(
    max_new_tokens: int, target: LlamaForCausalLM, run: Run, prompts: Prompts, plain_outputs: Outputs
) -> None:
    for prompt, expected in zip(prompts, plain_outputs, strict=True):
        generation = run(prompt, draft=target, method="vsd", max_new_tokens=max_new_tokens)
        assert generation.token_ids == expected[:max_new_tokens]


@pytest.mark.parametrize("method", ["pard", "vsd"])
@pytest.mark.parametrize("draft_vocab_size", [7, 16])
def test_vocabularies_may_differ(
    method: str,
    draft_vocab_size: int,
    run: Run,
    tiny_llama: Callable[..., LlamaForCausalLM],
    prompts: Prompts,
    plain_outputs: Outputs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proposed: set[int] = set()
    score = engine.score

    def recording_score(model: CachedModel, tokens: list[int], draft_ids: list[int]) -> torch.Tensor:
        proposed.update(draft_ids)
        return score(model, tokens, draft_ids)

    monkeypatch.setattr(engine, "score", recording_score)
    other = tiny_llama(seed=3, vocab_size=draft_vocab_size)
    for prompt, expected in zip(prompts, plain_outputs, strict=True):
        generation = run(prompt, draft=other, method=method, mask_token_id=draft_vocab_size - 1)
        assert generation.token_ids == expected
    assert max(map(max, plain_outputs)) >= 7  # ids that the small draft does not know came up
    assert max(proposed) < 11


def test_sliding_window(run: Run, prompts: Prompts) -> None:
    config = Qwen2Config(
        vocab_size=11,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.5,
        use_sliding_window=True,
        sliding_window=6,
        max_window_layers=1,
        eos_token_id=None,
    )
    torch.manual_seed(5)
    target = Qwen2ForCausalLM(config).eval()
    assert "sliding_attention" in config.layer_types
    for prompt in prompts:
        assert run(prompt, target=target).token_ids == transformers_greedy(target, prompt, 30)


@pytest.mark.parametrize(("target_length", "draft_length"), [(40, 128), (128, 40), (128, 5)])
def test_drafts_stay_inside_both_contexts(
    target_length: int,
    draft_length: int,
    run: Run,
    tiny_llama: Callable[..., LlamaForCausalLM],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forward = CachedModel.forward

    def guarded_forward(self: CachedModel, token_ids: list[int], *, num_logits: int) -> torch.Tensor:
        assert self.num_cached + len(token_ids) <= self.max_length
        return forward(self, token_ids, num_logits=num_logits)

    monkeypatch.setattr(CachedModel, "forward", guarded_forward)
    target, draft = tiny_llama(0, max_length=target_length), tiny_llama(0, max_length=draft_length)
    prompt = [1, 2, 3, 4, 5, 6, 7, 8]
    num_new = min(target_length, 48) - len(prompt)
    generation = run(prompt, target=target, draft=draft, num_speculative_tokens=6, max_new_tokens=num_new)
    assert generation.token_ids == run(prompt, target=target, method="ar", max_new_tokens=num_new).token_ids
    assert (generation.stats.num_drafts == 0) == (draft_length < len(prompt))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_ids": []}, "at least one token"),
        ({"prompt_ids": [1, 11]}, "from 0 to 10"),
        ({"prompt_ids": [-1]}, "from 0 to 10"),
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more; got 0"),
        ({"max_new_tokens": 127}, "room for 128 tokens; 2 prompt tokens and 127"),
        ({"num_speculative_tokens": 0}, "num_speculative_tokens must be 1 or more; got 0"),
        ({"mask_token_id": None}, "needs a mask_token_id from 0 to 10; got None"),
        ({"mask_token_id": 11}, "needs a mask_token_id from 0 to 10; got 11"),
        ({"draft": None}, "'pard' needs a draft model"),
        ({"draft": None, "method": "vsd"}, "'vsd' needs a draft model"),
        ({"method": "eagle"}, "method must be one of ar, vsd, pard; got 'eagle'"),
    ],
)
def test_bad_requests(changes: dict[str, Any], message: str, run: Run) -> None:
    with pytest.raises(GenerationError, match=message):
        run(**({"prompt_ids": [1, 2]} | changes))
