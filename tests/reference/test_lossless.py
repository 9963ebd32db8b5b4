"""Greedy: whatever the draft does, the output is the target's own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    GenerationConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from vllm_pard.metrics import AcceptanceStats
from vllm_pard.reference import engine
from vllm_pard.reference.engine import Generation, ReferenceEngine

Run = Callable[..., list[Generation]]
Prompts = list[list[int]]
Outputs = list[list[int]]
MakeLlama = Callable[..., LlamaForCausalLM]
AsDraft = Callable[[LlamaForCausalLM], LlamaForCausalLM]

ALL_METHODS = ["ar", "ar+", "vsd", "pard"]


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


def token_ids(generations: list[Generation]) -> Outputs:
    return [generation.token_ids for generation in generations]


def test_plain_is_transformers_greedy(target: LlamaForCausalLM, prompts: Prompts, plain_outputs: Outputs) -> None:
    assert plain_outputs == [transformers_greedy(target, prompt, len(plain_outputs[0])) for prompt in prompts]
    assert len({tuple(output) for output in plain_outputs}) > len(prompts) // 2  # the prompts matter


@pytest.mark.usefixtures("not_compiled")
@pytest.mark.parametrize("method", ["ar", "ar+"])
def test_plain_batch(method: str, run: Run, prompts: Prompts, plain_outputs: Outputs) -> None:
    generations = run(prompts, method=method)
    assert token_ids(generations) == plain_outputs
    assert all(generation.stats == AcceptanceStats() for generation in generations)


@pytest.mark.parametrize("num_speculative_tokens", range(1, 10))
@pytest.mark.parametrize("method", ["pard", "vsd"])
def test_drafts_change_nothing(
    method: str, num_speculative_tokens: int, run: Run, prompts: Prompts, plain_outputs: Outputs
) -> None:
    generations = run(prompts, method=method, num_speculative_tokens=num_speculative_tokens)
    assert token_ids(generations) == plain_outputs
    # A request neither sees nor counts what the others do.
    for prompt, generation in zip(prompts, generations, strict=True):
        assert run([prompt], method=method, num_speculative_tokens=num_speculative_tokens) == [generation]
    # Some drafts were rejected at once, some were accepted to the end.
    stats = sum((generation.stats for generation in generations), start=AcceptanceStats())
    assert stats.accepted_per_position[0] < stats.num_drafts
    assert stats.accepted_per_position[-1] > 0


@pytest.mark.parametrize("method", ["vsd", "pard"])
def test_one_engine_many_calls(
    method: Any, target: LlamaForCausalLM, draft: LlamaForCausalLM, prompts: Prompts, plain_outputs: Outputs
) -> None:
    """Batches that are full and not full, and what earlier calls left in the caches."""
    reference = ReferenceEngine(
        target, draft, method=method, num_speculative_tokens=3, mask_token_id=10, batch_size=3, max_length=60
    )
    for num_new in (30, 5, 30):
        generations = reference.generate(prompts, max_new_tokens=num_new)
        assert token_ids(generations) == [output[:num_new] for output in plain_outputs]
    assert reference.generate([], max_new_tokens=5) == []


@pytest.mark.usefixtures("not_compiled")
@pytest.mark.parametrize("method", ALL_METHODS)
def test_stops_after_the_first_end_of_sequence(method: str, run: Run, prompts: Prompts, plain_outputs: Outputs) -> None:
    assert len({tuple(output[:7]) for output in plain_outputs}) > 1
    for eos_token_id in {output[6] for output in plain_outputs}:
        expected = [
            output[: output.index(eos_token_id) + 1] if eos_token_id in output else output for output in plain_outputs
        ]
        generations = run(prompts, method=method, num_speculative_tokens=8, eos_token_ids=(100, eos_token_id))
        assert token_ids(generations) == expected


@pytest.mark.parametrize("max_new_tokens", [1, 2, 7])
def test_never_more_than_asked_for(
    max_new_tokens: int, target: LlamaForCausalLM, run: Run, prompts: Prompts, plain_outputs: Outputs
) -> None:
    generations = run(prompts, draft=target, method="vsd", max_new_tokens=max_new_tokens)
    assert token_ids(generations) == [output[:max_new_tokens] for output in plain_outputs]


@pytest.fixture
def proposed(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Every token that a draft proposes."""
    seen: set[int] = set()
    score = engine.score

    def recording_score(target: Any, requests: Any, draft_ids: torch.Tensor) -> torch.Tensor:
        seen.update(draft_ids.flatten().tolist())
        return score(target, requests, draft_ids)

    monkeypatch.setattr(engine, "score", recording_score)
    return seen


@pytest.mark.parametrize("method", ["pard", "vsd"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_proposes_what_it_was_trained_for(
    method: str, temperature: float, run: Run, tiny_llama: MakeLlama, prompts: Prompts, proposed: set[int]
) -> None:
    vocabulary = [1, 3, 4, 8]
    arguments = {"draft": tiny_llama(seed=3), "method": method, "temperature": temperature}
    run(prompts, **arguments)
    assert proposed - set(vocabulary), "the draft would propose others"
    proposed.clear()
    run(prompts, **arguments, draft_vocab=vocabulary)
    assert proposed == set(vocabulary)


@pytest.mark.parametrize("method", ["pard", "vsd"])
@pytest.mark.parametrize("draft_vocab_size", [7, 16])
def test_vocabularies_may_differ(
    method: str,
    draft_vocab_size: int,
    run: Run,
    tiny_llama: MakeLlama,
    prompts: Prompts,
    plain_outputs: Outputs,
    proposed: set[int],
) -> None:
    other = tiny_llama(seed=3, vocab_size=draft_vocab_size)
    generations = run(prompts, draft=other, method=method, mask_token_id=draft_vocab_size - 1)
    assert token_ids(generations) == plain_outputs
    assert max(map(max, plain_outputs)) >= 7  # ids that the small draft does not know came up
    assert max(proposed) < 11


WINDOW = {
    "vocab_size": 11,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.5,
    "sliding_window": 6,
    "eos_token_id": None,
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("mixed", [True, False], ids=["some layers", "all layers"])
def test_sliding_window(mixed: bool, attention: str, run: Run, prompts: Prompts) -> None:
    torch.manual_seed(5)
    target: Any
    if mixed:
        target = Qwen2ForCausalLM(Qwen2Config(**WINDOW, use_sliding_window=True, max_window_layers=1)).eval()
        assert set(target.config.layer_types) == {"full_attention", "sliding_attention"}
    else:
        target = MistralForCausalLM(MistralConfig(**WINDOW)).eval()
    target.set_attn_implementation(attention)
    expected = [transformers_greedy(target, prompt, 30) for prompt in prompts]
    assert token_ids(run(prompts, target=target)) == expected
    assert token_ids(run(prompts, target=target, draft=target, method="vsd")) == expected
    stats = run(prompts, target=target, draft=target, method="vsd")[0].stats
    assert stats.num_accepted_tokens == stats.num_draft_tokens  # the draft has the same window


@pytest.mark.parametrize("method", ["pard", "vsd"])
@pytest.mark.parametrize(("target_length", "draft_length"), [(40, 128), (128, 40), (128, 5)])
def test_drafts_stay_inside_both_contexts(
    method: str, target_length: int, draft_length: int, run: Run, tiny_llama: MakeLlama
) -> None:
    # With dynamic scaling, a position past the context would change the rotary embedding of its whole forward.
    rope = {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}}
    target = tiny_llama(0, max_length=target_length, **rope)
    draft = tiny_llama(0, max_length=draft_length, **rope)
    for model, length in ((target, target_length), (draft, draft_length)):
        model.register_forward_pre_hook(guard(length), with_kwargs=True)
    prompts = [[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3]]
    num_new = min(target_length, 48) - len(prompts[0])
    generations = run(
        prompts, target=target, draft=draft, method=method, num_speculative_tokens=6, max_new_tokens=num_new
    )
    assert token_ids(generations) == [transformers_greedy(target, prompt, num_new) for prompt in prompts]
    # The draft with 5 positions is asked for the short prompt, and never for the long one.
    assert [generation.stats.num_drafts == 0 for generation in generations] == [draft_length < 8, False]
    if method == "vsd" and draft_length >= 8:
        for generation in generations:  # with the weights of the target, accepted to the last token, a short draft too
            assert generation.stats.num_accepted_tokens == generation.stats.num_draft_tokens
    if draft_length == 5:
        assert generations[1].stats.num_draft_tokens == 2


def guard(max_length: int) -> Callable[..., None]:
    def check(_: Any, __: Any, arguments: dict[str, Any]) -> None:
        assert arguments["position_ids"].max() < max_length

    return check


def test_the_models_own_generation_config_does_not_matter(
    target: LlamaForCausalLM, run: Run, prompts: Prompts, plain_outputs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = GenerationConfig(
        repetition_penalty=3.0, eos_token_id=list(range(11)), min_new_tokens=3, do_sample=True, top_k=2, top_p=0.1,
        suppress_tokens=[1, 2, 3], max_length=3,
    )  # fmt: skip
    monkeypatch.setattr(target, "generation_config", own)
    assert token_ids(run(prompts, method="ar")) == plain_outputs
    assert token_ids(run(prompts, method="pard")) == plain_outputs
    assert target.generation_config is own
