"""A token's slot is its position, and no row sees a slot past its own position."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from vllm_pard.reference import engine
from vllm_pard.reference.cache import CachedModel
from vllm_pard.reference.engine import Generation, ReferenceEngine
from vllm_pard.reference.requests import Requests

Prompts = list[list[int]]
Outputs = list[list[int]]

# fp32 has 24 significant bits; a forward of 16 wide, 2 deep models adds up a few dozen roundings.
LOGITS_TOL = {"atol": 1e-4, "rtol": 1e-4}
LENGTH = 24
# Finite: a hidden slot has weight 0, and 0 times NaN is NaN.
POISON = 1e6


def make_cached(model: LlamaForCausalLM, batch_size: int = 1) -> CachedModel:
    cached = CachedModel(model, max_length=LENGTH, compiled=False)
    with torch.no_grad():
        cached.forward(torch.zeros(batch_size, 1, dtype=torch.long), torch.zeros(batch_size, 1).long(), num_logits=1)
    return cached


def poison(cached: CachedModel, i: int, first: int, last: int | None = None) -> None:
    for layer in cached.cache.layers:
        if layer.is_initialized:
            layer.keys[i, :, first:last] = POISON
            layer.values[i, :, first:last] = -POISON


@torch.no_grad()
def test_rows_in_any_order_and_number(target: LlamaForCausalLM) -> None:
    tokens = torch.randint(0, 11, (2, 12), generator=torch.Generator().manual_seed(3))
    whole = target(tokens).logits
    cached = make_cached(target, batch_size=2)
    parts = [(0, 4), (4, 5), (5, 12)]
    starts = [torch.tensor([[0], [0]]), torch.tensor([[4], [4]]), torch.tensor([[5], [5]])]
    for (first, last), start in zip(parts, starts, strict=True):
        positions = start + torch.arange(last - first)
        logits = cached.forward(tokens[:, first:last], positions, num_logits=last - first)
        torch.testing.assert_close(logits, whole[:, first:last], **LOGITS_TOL)
    # Each request at positions of its own, in an order of its own.
    positions = torch.tensor([[7, 8], [3, 2]])
    logits = cached.forward(tokens.gather(1, positions), positions, num_logits=2)
    expected = torch.stack([whole[i, rows] for i, rows in enumerate(positions)])
    torch.testing.assert_close(logits, expected, **LOGITS_TOL)


@torch.no_grad()
def test_rows_that_are_nowhere_touch_nothing(target: LlamaForCausalLM) -> None:
    tokens = torch.randint(0, 11, (1, LENGTH), generator=torch.Generator().manual_seed(4))
    cached = make_cached(target)
    cached.forward(tokens, torch.arange(LENGTH)[None], num_logits=1)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in cached.cache.layers]
    positions = torch.tensor([[-3, -1, LENGTH - 1, LENGTH, LENGTH + 9]])
    token_ids = torch.tensor([[1, 2, int(tokens[0, -1]), 3, 4]])
    logits = cached.forward(token_ids, positions, num_logits=3)
    torch.testing.assert_close(logits[0, 0], target(tokens).logits[0, -1], **LOGITS_TOL)
    assert logits.isfinite().all()
    for layer, (keys, values) in zip(cached.cache.layers, before, strict=True):
        torch.testing.assert_close(layer.keys[:, :, :LENGTH], keys[:, :, :LENGTH], **LOGITS_TOL)
        torch.testing.assert_close(layer.values[:, :, :LENGTH], values[:, :, :LENGTH], **LOGITS_TOL)


@torch.no_grad()
def test_later_slots_do_not_matter_earlier_ones_do(target: LlamaForCausalLM) -> None:
    tokens = torch.randint(0, 11, (1, 9), generator=torch.Generator().manual_seed(5))
    cached = make_cached(target)
    cached.forward(tokens[:, :8], torch.arange(8)[None], num_logits=1)
    newest = (tokens[:, 8:], torch.tensor([[8]]))
    poison(cached, 0, 8)
    expected = target(tokens).logits[:, -1:]
    torch.testing.assert_close(cached.forward(*newest, num_logits=1), expected, **LOGITS_TOL)
    poison(cached, 0, 7, 8)
    assert (cached.forward(*newest, num_logits=1) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("method", ["pard", "vsd"])
def test_what_is_left_behind_does_not_matter(
    method: Any,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., list[Generation]],
    target: LlamaForCausalLM,
    draft: LlamaForCausalLM,
    prompts: Prompts,
    plain_outputs: Outputs,
) -> None:
    """Before each call every slot, and after each step every slot that holds no kept token, is overwritten."""
    reference = ReferenceEngine(
        target, draft, method=method, num_speculative_tokens=4, mask_token_id=10, batch_size=4, max_length=50
    )
    prefill, commit = engine.prefill, engine.commit

    def poisoning_prefill(model: CachedModel, requests: Requests, *features: None) -> None:
        for i in range(4):
            poison(model, i, 0)
        prefill(model, requests, *features)
        for i, length in enumerate(requests.lengths.tolist()):
            poison(model, i, length)

    def poisoning_commit(requests: Requests, *arguments: torch.Tensor) -> None:
        before = requests.lengths.tolist()
        commit(requests, *arguments)
        assert reference.draft is not None
        for i, length in enumerate(requests.lengths.tolist()):
            poison(reference.target, i, length - 1)
            # In parallel the draft has read nothing of what it drafted; one by one all but the last token.
            poison(reference.draft, i, before[i] if method == "pard" else min(length - 1, before[i] + 3))

    expected = run(prompts, method=method)  # before the poison
    monkeypatch.setattr(engine, "prefill", poisoning_prefill)
    monkeypatch.setattr(engine, "commit", poisoning_commit)
    for _ in range(2):
        generations = reference.generate(prompts, max_new_tokens=30)
        assert [generation.token_ids for generation in generations] == plain_outputs
        assert generations == expected  # the drafts as well
