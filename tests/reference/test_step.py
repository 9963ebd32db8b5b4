"""What one step drafts, keeps and counts."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from transformers import LlamaForCausalLM

from vllm_pard.metrics import AcceptanceStats
from vllm_pard.reference import engine
from vllm_pard.reference.cache import CachedModel
from vllm_pard.reference.engine import Generation

Run = Callable[..., Generation]
Prompts = list[list[int]]

MASK_TOKEN_ID = 10
TOKENS = [1, 4, 2, 8, 5, 7, 3]
# fp32 has 24 significant bits; a forward of 16 wide, 2 deep models adds up a few dozen roundings.
LOGITS_TOL = {"atol": 1e-4, "rtol": 1e-4}


def test_target_as_its_own_draft_accepts_everything(target: LlamaForCausalLM, run: Run, prompts: Prompts) -> None:
    for prompt in prompts:
        stats = run(prompt, draft=target, method="vsd", num_speculative_tokens=4, max_new_tokens=30).stats
        assert stats == AcceptanceStats(
            num_drafts=6, num_draft_tokens=24, num_accepted_tokens=24, accepted_per_position=(6, 6, 6, 6)
        )  # fmt: skip


def test_target_as_its_own_parallel_draft_accepts_the_first(
    target: LlamaForCausalLM, run: Run, prompts: Prompts
) -> None:
    for prompt in prompts:
        stats = run(prompt, draft=target).stats
        assert stats.accepted_per_position[0] == stats.num_drafts


def test_plain_decoding_drafts_nothing(run: Run) -> None:
    assert run(TOKENS, method="ar").stats == AcceptanceStats()


def test_stats_add_up_to_the_output(monkeypatch: pytest.MonkeyPatch, run: Run, prompts: Prompts) -> None:
    accepted: list[int] = []
    verify = engine.verify

    def recording_verify(draft_ids: list[int], target_logits: torch.Tensor) -> tuple[int, int]:
        num_accepted, bonus_id = verify(draft_ids, target_logits)
        accepted.append(num_accepted)
        return num_accepted, bonus_id

    monkeypatch.setattr(engine, "verify", recording_verify)
    stats = AcceptanceStats()
    for prompt in prompts:
        before = len(accepted)
        generation = run(prompt, num_speculative_tokens=3, max_new_tokens=30)
        num_kept = sum(accepted[before:]) + len(accepted[before:])
        assert 30 <= num_kept <= 33  # the last step may keep more than was asked for
        stats += generation.stats
    assert set(accepted) == {0, 1, 2, 3}
    assert stats.num_drafts == len(accepted)
    assert stats.num_draft_tokens == 3 * len(accepted)
    assert stats.num_accepted_tokens == sum(accepted)
    assert stats.accepted_per_position == tuple(sum(a > i for a in accepted) for i in range(3))


@pytest.mark.parametrize("method", ["pard", "vsd"])
def test_caches_hold_exactly_the_kept_tokens(
    method: str, monkeypatch: pytest.MonkeyPatch, run: Run, prompts: Prompts
) -> None:
    num_kept: Counter[int] = Counter()
    commit = engine.commit

    def checking_commit(models: list[CachedModel], tokens: list[int], kept_ids: list[int]) -> list[int]:
        total = commit(models, tokens, kept_ids)
        target, draft = models
        num_kept[len(kept_ids)] += 1
        assert target.num_cached == len(total) - 1
        if method == "pard":
            assert draft.num_cached == len(total) - len(kept_ids)
        else:  # its own accepted tokens stay, but the fourth was never read
            assert draft.num_cached == len(total) - (2 if len(kept_ids) == 5 else 1)
        for model in models:
            assert_cache_holds(model, total[: model.num_cached])
        return total

    monkeypatch.setattr(engine, "commit", checking_commit)
    for prompt in prompts:
        run(prompt, method=method, num_speculative_tokens=4)
    assert set(num_kept) == {1, 2, 3, 4, 5}


def assert_cache_holds(model: CachedModel, tokens: list[int]) -> None:
    """The cached keys and values are those of one forward over `tokens`."""
    fresh = CachedModel(model.model)
    fresh.forward(tokens, num_logits=1)
    for layer, expected in zip(model._cache.layers, fresh._cache.layers, strict=True):
        torch.testing.assert_close(layer.keys, expected.keys, **LOGITS_TOL)
        torch.testing.assert_close(layer.values, expected.values, **LOGITS_TOL)


@torch.no_grad()
def test_parallel_rows_are_those_of_one_forward(draft: LlamaForCausalLM) -> None:
    cached = CachedModel(draft)
    engine.prefill([cached], TOKENS[:4])
    for length in (4, 5, 7):  # 1, 1 and 2 pending tokens
        logits = engine.parallel_logits(cached, TOKENS[:length], 5, MASK_TOKEN_ID)
        whole = draft(torch.tensor([[*TOKENS[:length], *[MASK_TOKEN_ID] * 4]])).logits[0]
        assert cached.num_cached == length
        torch.testing.assert_close(logits, whole[-5:], **LOGITS_TOL)


@torch.no_grad()
def test_more_masks_leave_earlier_drafts_alone(draft: LlamaForCausalLM) -> None:
    rows = [engine.parallel_logits(CachedModel(draft), TOKENS, k, MASK_TOKEN_ID) for k in range(1, 10)]
    for k, logits in enumerate(rows, start=1):
        assert logits.shape[0] == k
        torch.testing.assert_close(logits, rows[-1][:k], **LOGITS_TOL)


@torch.no_grad()
def test_autoregressive_drafts_are_the_drafts_own_greedy_tokens(draft: LlamaForCausalLM, run: Run) -> None:
    drafted = engine.draft_one_by_one(CachedModel(draft), TOKENS, 6, 11)
    assert drafted == run(TOKENS, target=draft, method="ar", max_new_tokens=6).token_ids


def test_one_draft_token_needs_no_mask(run: Run) -> None:
    outputs = [run(TOKENS, num_speculative_tokens=1, mask_token_id=mask_token_id) for mask_token_id in (0, 7)]
    assert outputs[0] == outputs[1]


def test_verify_counts_the_common_prefix() -> None:
    logits = torch.nn.functional.one_hot(torch.tensor([3, 1, 4, 1]), 6).float()
    assert engine.verify([3, 1, 4], logits) == (3, 1)
    assert engine.verify([3, 1, 5], logits) == (2, 4)
    assert engine.verify([0, 1, 4], logits) == (0, 3)  # right again after a wrong one does not count
    assert engine.verify([], logits[:1]) == (0, 3)
