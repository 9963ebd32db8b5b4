"""What one step drafts, keeps and counts."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM

from vllm_pard.metrics import AcceptanceStats
from vllm_pard.reference import engine
from vllm_pard.reference.cache import CachedModel
from vllm_pard.reference.drafters import Drafts, draft_one_by_one, parallel_logits
from vllm_pard.reference.engine import Generation, ReferenceEngine
from vllm_pard.reference.requests import Requests
from vllm_pard.reference.sampling import Sampler

Run = Callable[..., list[Generation]]
Prompts = list[list[int]]

MASK_TOKEN_ID = 10
TOKENS = [1, 4, 2, 8, 5, 7, 3]
# fp32 has 24 significant bits; a forward of 16 wide, 2 deep models adds up a few dozen roundings.
LOGITS_TOL = {"atol": 1e-4, "rtol": 1e-4}
GREEDY = Sampler(temperature=0.0, seed=0, device=torch.device("cpu"))


def make_requests(*prompts: list[int], max_new_tokens: int = 30, eos_token_ids: tuple[int, ...] = ()) -> Requests:
    return Requests(
        prompts,
        batch_size=len(prompts),
        max_length=max(map(len, prompts)) + max_new_tokens,
        max_new_tokens=max_new_tokens,
        eos_token_ids=eos_token_ids,
        device=torch.device("cpu"),
    )


def test_target_as_its_own_draft_accepts_everything(target: LlamaForCausalLM, run: Run, prompts: Prompts) -> None:
    for generation in run(prompts, draft=target, method="vsd", num_speculative_tokens=4, max_new_tokens=30):
        assert generation.stats == AcceptanceStats(
            num_drafts=6, num_draft_tokens=24, num_accepted_tokens=24, accepted_per_position=(6, 6, 6, 6)
        )  # fmt: skip


def test_target_as_its_own_parallel_draft_accepts_the_first(
    target: LlamaForCausalLM, run: Run, prompts: Prompts
) -> None:
    for generation in run(prompts, draft=target):
        assert generation.stats.accepted_per_position[0] == generation.stats.num_drafts


def test_stats_add_up_to_the_output(monkeypatch: pytest.MonkeyPatch, run: Run, prompts: Prompts) -> None:
    accepted: list[int] = []
    verify = engine.verify

    def recording_verify(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        num_accepted, bonus_ids = verify(*arguments)
        accepted.extend(num_accepted.tolist())
        return num_accepted, bonus_ids

    monkeypatch.setattr(engine, "verify", recording_verify)
    stats = AcceptanceStats()
    for prompt in prompts:
        before = len(accepted)
        [generation] = run([prompt], num_speculative_tokens=3, max_new_tokens=30)
        num_kept = sum(accepted[before:]) + len(accepted[before:])
        assert 30 <= num_kept <= 33  # the last step may keep more than was asked for
        stats += generation.stats
    assert set(accepted) == {0, 1, 2, 3}
    assert stats.num_drafts == len(accepted)
    assert stats.num_draft_tokens == 3 * len(accepted)
    assert stats.num_accepted_tokens == sum(accepted)
    assert stats.accepted_per_position == tuple(sum(a > i for a in accepted) for i in range(3))


@pytest.mark.parametrize("method", ["pard", "vsd"])
def test_caches_hold_the_kept_tokens(
    method: Any,
    monkeypatch: pytest.MonkeyPatch,
    target: LlamaForCausalLM,
    draft: LlamaForCausalLM,
    prompts: Prompts,
) -> None:
    """After each step, what the next one builds on is what one forward over these tokens gives."""
    num_kept: Counter[int] = Counter()
    commit = engine.commit
    reference = ReferenceEngine(
        target,
        draft,
        method=method,
        num_speculative_tokens=4,
        mask_token_id=MASK_TOKEN_ID,
        batch_size=len(prompts),
        max_length=50,
    )

    def checking_commit(requests: Requests, *arguments: torch.Tensor) -> None:
        before = requests.lengths.tolist()
        commit(requests, *arguments)
        for i, length in enumerate(requests.lengths.tolist()):
            num_kept[length - before[i]] += 1
            # The draft has read its own accepted tokens one by one, but for the last, and in parallel none of them.
            num_read = before[i] if method == "pard" else min(length - 1, before[i] + 3)
            tokens = requests.tokens[i, :length].tolist()
            assert_cache_holds(reference.target, i, tokens[:-1])
            assert reference.draft is not None
            assert_cache_holds(reference.draft, i, tokens[:num_read])

    monkeypatch.setattr(engine, "commit", checking_commit)
    reference.generate(prompts, max_new_tokens=30)
    assert set(num_kept) == {0, 1, 2, 3, 4, 5}  # 0: finished before the others


def assert_cache_holds(model: CachedModel, i: int, tokens: list[int]) -> None:
    """The keys and values of request i at the positions of `tokens` are those of one forward."""
    if not tokens:
        return
    fresh = DynamicCache()
    model.model(torch.tensor([tokens]), past_key_values=fresh)
    for layer, expected in zip(model.cache.layers, fresh.layers, strict=True):
        torch.testing.assert_close(layer.keys[i, :, : len(tokens)], expected.keys[0], **LOGITS_TOL)
        torch.testing.assert_close(layer.values[i, :, : len(tokens)], expected.values[0], **LOGITS_TOL)


@torch.no_grad()
def test_parallel_rows_are_those_of_one_forward(draft: LlamaForCausalLM) -> None:
    cached = CachedModel(draft, max_length=40, compiled=False)
    requests = make_requests(TOKENS[:4], TOKENS[:1])
    engine.prefill(cached, requests)
    for kept in ([], [5], [7, 3, 1, 2, 6, 4], [9, 9]):  # 5 draft tokens: up to 6 are kept
        if kept:
            requests.append(torch.tensor([kept, kept[::-1]]), torch.tensor([len(kept), max(1, len(kept) - 1)]))
        logits = parallel_logits(cached, requests, 5, MASK_TOKEN_ID)
        for i, length in enumerate(requests.lengths.tolist()):
            rows = [*requests.tokens[i, :length].tolist(), *[MASK_TOKEN_ID] * 4]
            torch.testing.assert_close(logits[i], draft(torch.tensor([rows])).logits[0, -5:], **LOGITS_TOL)


@torch.no_grad()
def test_more_masks_leave_earlier_drafts_alone(draft: LlamaForCausalLM) -> None:
    rows = []
    for num_speculative_tokens in range(1, 10):
        cached = CachedModel(draft, max_length=40, compiled=False)
        requests = make_requests(TOKENS)
        engine.prefill(cached, requests)
        rows.append(parallel_logits(cached, requests, num_speculative_tokens, MASK_TOKEN_ID)[0])
    for num_speculative_tokens, logits in enumerate(rows, start=1):
        assert logits.shape[0] == num_speculative_tokens
        torch.testing.assert_close(logits, rows[-1][:num_speculative_tokens], **LOGITS_TOL)


@torch.no_grad()
def test_autoregressive_drafts_are_the_drafts_own_greedy_tokens(draft: LlamaForCausalLM, run: Run) -> None:
    cached = CachedModel(draft, max_length=40, compiled=False)
    requests = make_requests(TOKENS, TOKENS[:3])
    engine.prefill(cached, requests)
    drafts = draft_one_by_one(cached, requests, GREEDY, 6, 11)
    plain = run([TOKENS, TOKENS[:3]], target=draft, method="ar", max_new_tokens=6)
    assert drafts.token_ids.tolist() == [generation.token_ids for generation in plain]


def test_one_draft_token_needs_no_mask(run: Run) -> None:
    outputs = [run([TOKENS], num_speculative_tokens=1, mask_token_id=mask_token_id) for mask_token_id in (0, 7)]
    assert outputs[0] == outputs[1]


def one_hot(*token_ids: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(token_ids, dtype=torch.long), 6).float()


@pytest.mark.parametrize(
    ("draft_ids", "num_draft_tokens", "expected"),
    [
        ([3, 1, 4], 3, (3, 1)),
        ([3, 1, 5], 3, (2, 4)),
        ([0, 1, 4], 3, (0, 3)),  # right again after a wrong one does not count
        ([3, 1, 4], 2, (2, 4)),  # the third has no position
        ([3, 1, 4], 0, (0, 3)),
        ([], 0, (0, 3)),
    ],
)
def test_verify_counts_the_common_prefix(
    draft_ids: list[int], num_draft_tokens: int, expected: tuple[int, int]
) -> None:
    target_probs = one_hot(3, 1, 4, 1)[: len(draft_ids) + 1]
    drafts = Drafts(torch.tensor([draft_ids], dtype=torch.long), one_hot(*draft_ids)[None])
    num_accepted, bonus_ids = engine.verify(drafts, torch.tensor([num_draft_tokens]), target_probs[None], GREEDY)
    assert (num_accepted.item(), bonus_ids.item()) == expected


class TestAppend:
    def test_as_far_as_each_request_goes(self) -> None:
        requests = make_requests([1, 2], [3], max_new_tokens=4, eos_token_ids=(9, 8))
        requests.append(torch.tensor([[5, 6, 7], [5, 9, 7]]), torch.tensor([2, 3]))
        assert requests.lengths.tolist() == [4, 3]
        assert requests.finished.tolist() == [False, True]
        requests.append(torch.tensor([[5, 6, 7], [5, 6, 7]]), torch.tensor([3, 3]))
        assert requests.finished.tolist() == [True, True]
        requests.count(torch.tensor([1, 1]), torch.tensor([1, 1]))
        assert [generation.token_ids for generation in requests.generations()] == [[5, 6, 5, 6], [5, 9]]

    def test_a_rejected_end_ends_nothing(self) -> None:
        requests = make_requests([1, 2], eos_token_ids=(9,))
        requests.append(torch.tensor([[5, 6, 9]]), torch.tensor([2]))
        assert requests.finished.tolist() == [False]

    def test_steps_without_a_draft_and_finished_requests_are_not_counted(self) -> None:
        requests = make_requests([1], [1], max_new_tokens=2)
        for num_draft_tokens, num_accepted in ((3, 1), (0, 0), (2, 2)):
            requests.count(torch.tensor([num_draft_tokens, 3]), torch.tensor([num_accepted, 1]))
            requests.append(torch.tensor([[5, 6], [5, 6]]), torch.tensor([0, 2]))
        of_both = [AcceptanceStats.of_draft(3, 1), AcceptanceStats.of_draft(2, 2)]
        stats = [generation.stats for generation in requests.generations()]
        assert stats == [of_both[0] + of_both[1], of_both[0]]
