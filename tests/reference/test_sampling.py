"""Sampled: whatever the draft does, the output has the target's distribution."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pard_kernels import DraftTree
from transformers import LlamaForCausalLM

from vllm_pard.metrics import AcceptanceStats
from vllm_pard.reference import engine, tree
from vllm_pard.reference.drafters import Drafts
from vllm_pard.reference.engine import Generation, ReferenceEngine, generate
from vllm_pard.reference.sampling import Sampler
from vllm_pard.target_proj import TargetProj

MakeLlama = Callable[..., LlamaForCausalLM]

VOCAB_SIZE = 5
PROMPT = [3, 1, 4, 1]
TEMPERATURE = 1.5
NUM_TOKENS = 3  # sampled together: all 125 answers have a bin
NUM_SAMPLES = 12000
BATCH_SIZE = 3000


def critical(num_bins: int) -> float:
    """What chi-square exceeds with p = 0.0001, by Wilson and Hilferty's approximation."""
    freedom = num_bins - 1
    return float(freedom * (1 - 2 / (9 * freedom) + 3.719 * (2 / (9 * freedom)) ** 0.5) ** 3)


def chi_square(token_ids: list[list[int]], probs: torch.Tensor) -> float:
    """Relative to what is too much: above 1, the tokens do not have this distribution."""
    places = torch.tensor(token_ids) @ torch.tensor([VOCAB_SIZE**2, VOCAB_SIZE, 1])
    observed = torch.bincount(places, minlength=len(probs)).double()
    expected = probs * observed.sum()
    rare = expected < 5  # too few for a bin of their own
    observed = torch.cat([observed[~rare], observed[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    return float(((observed - expected) ** 2 / expected).sum()) / critical(len(expected))


@pytest.fixture(scope="module")
def small(tiny_llama: MakeLlama) -> LlamaForCausalLM:
    return tiny_llama(seed=6, vocab_size=VOCAB_SIZE)


@pytest.fixture(scope="module")
def answer_probs(small: LlamaForCausalLM) -> torch.Tensor:
    """The exact probability of each answer of three tokens. [V * V * V]"""
    with torch.no_grad():
        answers = torch.cartesian_prod(*[torch.arange(VOCAB_SIZE)] * NUM_TOKENS)  # [V * V * V, 3]
        rows = torch.cat([torch.tensor(PROMPT).expand(len(answers), -1), answers], dim=1)
        logits = small(rows).logits[:, len(PROMPT) - 1 : -1].double()  # [V * V * V, 3, V]
        return (logits / TEMPERATURE).softmax(dim=-1).gather(2, answers[:, :, None])[:, :, 0].prod(dim=1)


def sample(target: LlamaForCausalLM, draft: LlamaForCausalLM, method: Any, **changes: Any) -> list[Generation]:
    options = {"num_speculative_tokens": 2, "mask_token_id": 0, "max_length": len(PROMPT) + NUM_TOKENS} | changes
    reference = ReferenceEngine(target, draft, method=method, batch_size=BATCH_SIZE, **options)
    return reference.generate([PROMPT] * NUM_SAMPLES, max_new_tokens=NUM_TOKENS, temperature=TEMPERATURE, seed=11)


def token_ids(generations: list[Generation]) -> list[list[int]]:
    return [generation.token_ids for generation in generations]


@pytest.mark.usefixtures("not_compiled")
@pytest.mark.parametrize(
    ("method", "draft_vocab_size", "changes"),
    [
        ("ar", 5, {}),
        ("ar+", 5, {}),
        ("vsd", 5, {}),
        ("vsd", 4, {}),
        ("pard", 5, {}),
        ("pard", 5, {"num_speculative_tokens": 1}),
        ("pard", 5, {"num_speculative_tokens": 5}),
        ("pard", 4, {}),
        ("pard", 7, {"mask_token_id": 6}),
        ("pard2", 5, {}),
        ("pard", 4, {"num_tree_nodes": 6}),
        ("pard2", 5, {"num_tree_nodes": 4}),
    ],
)
def test_samples_follow_the_target(
    method: str,
    draft_vocab_size: int,
    changes: dict[str, Any],
    small: LlamaForCausalLM,
    tiny_llama: MakeLlama,
    target_proj_of: Callable[..., TargetProj],
    answer_probs: torch.Tensor,
) -> None:
    draft = tiny_llama(seed=8, vocab_size=draft_vocab_size)
    if method == "pard2":
        changes = changes | {"target_proj": target_proj_of(small, draft)}
    generations = sample(small, draft, method, **changes)
    assert chi_square(token_ids(generations), answer_probs) < 1
    if method in ("vsd", "pard", "pard2"):
        stats = sum((generation.stats for generation in generations), start=AcceptanceStats())
        assert 0.1 < stats.acceptance_rate < 0.9


def test_samples_follow_the_target_to_the_end_of_the_context(
    tiny_llama: MakeLlama, answer_probs: torch.Tensor, small: LlamaForCausalLM
) -> None:
    """The last draft tokens have no position: the bonus token in their place is the target's, not what makes up."""
    draft = tiny_llama(seed=8, vocab_size=VOCAB_SIZE, max_length=len(PROMPT) + 1)
    generations = sample(small, draft, "pard", num_speculative_tokens=4)
    assert chi_square(token_ids(generations), answer_probs) < 1
    assert {generation.stats.num_draft_tokens for generation in generations} == {1}


def test_the_test_can_tell_of_trees(
    small: LlamaForCausalLM, tiny_llama: MakeLlama, answer_probs: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that goes on blindly."""
    verify = tree.verify_tree

    def wrong_verify(found: DraftTree, target_token_ids: torch.Tensor, *rest: torch.Tensor) -> Any:
        first_child = (found.parents[:, 1:] == 0).int().argmax(dim=1, keepdim=True)  # [B, 1]
        target_token_ids[:, :1] = found.token_ids.gather(1, first_child)
        return verify(found, target_token_ids, *rest)

    monkeypatch.setattr(tree, "verify_tree", wrong_verify)
    draft = tiny_llama(seed=8, vocab_size=VOCAB_SIZE)
    assert chi_square(token_ids(sample(small, draft, "pard", num_tree_nodes=4)), answer_probs) > 2


@pytest.mark.parametrize("method", ["vsd", "pard"])
@pytest.mark.parametrize("mistake", ["accepts all", "bonus of the target"])
def test_the_test_can_tell(
    method: str,
    mistake: str,
    small: LlamaForCausalLM,
    tiny_llama: MakeLlama,
    answer_probs: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verify = engine.verify

    def wrong_verify(drafts: Any, num_draft_tokens: Any, target_probs: Any, sampler: Any) -> Any:
        num_accepted, bonus_ids = verify(drafts, num_draft_tokens, target_probs, sampler)
        if mistake == "accepts all":
            return num_draft_tokens, bonus_ids
        return num_accepted, sampler.sample(target_probs[torch.arange(len(num_accepted)), num_accepted])

    monkeypatch.setattr(engine, "verify", wrong_verify)
    generations = sample(small, tiny_llama(seed=8, vocab_size=VOCAB_SIZE), method)
    assert chi_square(token_ids(generations), answer_probs) > 2


@pytest.mark.usefixtures("not_compiled")
@pytest.mark.parametrize("method", ["ar", "ar+", "vsd", "pard"])
def test_seeds(method: Any, target: LlamaForCausalLM, draft: LlamaForCausalLM) -> None:
    reference = ReferenceEngine(
        target, draft, method=method, num_speculative_tokens=3, mask_token_id=10, batch_size=2, max_length=40
    )

    def answers(seed: int) -> list[list[int]]:
        prompts = [PROMPT] * 4
        return token_ids(reference.generate(prompts, max_new_tokens=20, temperature=1.0, seed=seed))

    state = torch.get_rng_state()
    first = answers(seed=5)
    assert len(set(map(tuple, first))) == 4  # equal prompts in one batch, and in two
    assert answers(seed=5) == first
    assert answers(seed=50) != first
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("method", ["ar", "vsd", "pard"])
def test_a_cold_sample_is_greedy(
    method: Any,
    target: LlamaForCausalLM,
    draft: LlamaForCausalLM,
    prompts: list[list[int]],
    plain_outputs: list[list[int]],
) -> None:
    generations = generate(
        target, draft, prompts, method=method, num_speculative_tokens=4, mask_token_id=10, max_new_tokens=30,
        temperature=1e-4,
    )  # fmt: skip
    assert token_ids(generations) == plain_outputs


def test_equal_distributions_accept_everything(target: LlamaForCausalLM, prompts: list[list[int]]) -> None:
    for generation in generate(
        target, target, prompts, method="vsd", num_speculative_tokens=4, max_new_tokens=30, temperature=1.0
    ):
        assert generation.stats.acceptance_rate > 0.95  # rounding differs between one row and five


def test_rejected_although_equal_but_for_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target has more of no token; the bonus token is the target's all the same."""
    target_probs = torch.tensor([[[0.0, 0.6, 0.4]] * 2])
    drafts = Drafts(torch.tensor([[1]]), target_probs[:, :1] * (1 + 1e-6))
    sampler = Sampler(temperature=1.0, seed=0, device=torch.device("cpu"))
    monkeypatch.setattr(sampler, "uniform", lambda like: torch.full_like(like, 1 - 2**-24))
    bonus = set()
    for _ in range(50):
        num_accepted, bonus_ids = engine.verify(drafts, torch.tensor([1]), target_probs, sampler)
        assert num_accepted.item() == 0
        bonus.add(bonus_ids.item())
    assert bonus == {1, 2}


class TestSampler:
    WEIGHTS = torch.tensor([0.5, 0.0, 2.0, 1.5])

    def test_draws_in_proportion(self) -> None:
        sampler = Sampler(temperature=1.0, seed=0, device=torch.device("cpu"))
        shares = torch.bincount(sampler.sample(self.WEIGHTS.expand(20000, 4))) / 20000
        # The standard deviation of a share is at most 0.5 / sqrt(20000) = 0.0035.
        torch.testing.assert_close(shares, self.WEIGHTS / 4, atol=0.015, rtol=0)
        assert shares[1] == 0

    def test_greedy_is_one_token(self) -> None:
        sampler = Sampler(temperature=0.0, seed=0, device=torch.device("cpu"))
        probs = sampler.probs(torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 4.0]], dtype=torch.bfloat16))
        assert probs.tolist() == [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
        assert probs.dtype == torch.float32
        assert all(sampler.sample(probs).tolist() == [1, 0] for _ in range(200))
