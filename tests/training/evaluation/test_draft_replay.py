"""The replay of known answers against decoding with the reference engine, in fp32 and to the last count."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vllm_pard.metrics import AcceptanceStats
from vllm_pard.pard2 import FeatureConfig
from vllm_pard.reference.engine import ReferenceEngine
from vllm_pard.reference.requests import Requests
from vllm_pard.target_proj import TargetProj
from vllm_pard.training.evaluation import draft_replay
from vllm_pard.training.evaluation.draft_replay import Answered, DraftReplay, ReplayError

VOCAB_SIZE, MASK_ID, MAX_K = 5, 4, 6  # few tokens, so that random models agree by chance
NUM_NEW = 30


def make_llama(seed: int, vocab_size: int = VOCAB_SIZE, num_layers: int = 2, hidden_size: int = 16) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=32,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def slightly_off(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Sometimes right and sometimes wrong."""
    draft = deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in draft.parameters():
            weight += 0.03 * torch.randn(weight.shape, generator=generator)
    return draft


def projection(target: LlamaForCausalLM, draft: LlamaForCausalLM, layers: tuple[int, ...]) -> TargetProj:
    """As strong as the draft's own embeddings: a wrong feature shows."""
    target_dim, hidden_size = len(layers) * target.config.hidden_size, draft.config.hidden_size
    features = FeatureConfig(target_layers=layers, scale=0.7, target_dim=target_dim, has_bias=False, target=None)
    weight = 0.2 * torch.randn(hidden_size, target_dim, generator=torch.Generator().manual_seed(7))
    return TargetProj(features, weight, None)


@pytest.fixture(scope="module")
def target() -> LlamaForCausalLM:
    return make_llama(seed=0, num_layers=4)


@pytest.fixture(scope="module")
def draft(target) -> LlamaForCausalLM:
    return slightly_off(target)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    lengths = [1, 2, *torch.randint(3, 20, (7,), generator=generator).tolist()]
    return [torch.randint(0, VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]


def answers_of(target, prompts, max_tokens=NUM_NEW, eos_token_ids=()) -> list[Answered]:
    """The target's own, without a draft."""
    engine = ReferenceEngine(target, method="ar", batch_size=len(prompts), max_length=64)
    found = engine.generate(prompts, max_new_tokens=max_tokens, eos_token_ids=eos_token_ids)
    return [Answered(prompt, each.token_ids) for prompt, each in zip(prompts, found, strict=True)]


@pytest.fixture
def decoded(monkeypatch, target):
    """Greedy decoding of answers from their first token on, with what is accepted counted up to their ends."""

    def decode(draft, answered, k, target_proj=None, target=target, draft_vocab=None) -> AcceptanceStats:
        steps, count = [], Requests.count

        def recording_count(requests, num_draft_tokens, num_accepted):
            steps.append((requests.lengths.tolist(), num_accepted.tolist()))
            count(requests, num_draft_tokens, num_accepted)

        monkeypatch.setattr(Requests, "count", recording_count)
        engine = ReferenceEngine(
            target,
            draft,
            method="pard" if target_proj is None else "pard2",
            num_speculative_tokens=k,
            mask_token_id=MASK_ID,
            target_proj=target_proj,
            draft_vocab=draft_vocab,
            batch_size=len(answered),
            max_length=64,
        )
        prompts = [[*prompt, answer[0]] for prompt, answer in answered]
        found = engine.generate(prompts, max_new_tokens=NUM_NEW)
        monkeypatch.undo()
        stats = AcceptanceStats()
        for number, (prompt, answer) in enumerate(answered):
            assert [answer[0], *found[number].token_ids][: len(answer)] == answer
            places = {lengths[number]: accepted[number] for lengths, accepted in steps}  # a finished one stays
            for length, accepted in places.items():
                num_left = len(prompt) + len(answer) - length
                if num_left > 0:
                    stats += AcceptanceStats.of_draft(k, min(accepted, num_left))
        return stats

    return decode


def replay_of(draft, **options) -> DraftReplay:
    given = {"mask_token_id": MASK_ID, "num_speculative_tokens": MAX_K, "vocab_size": VOCAB_SIZE}
    return DraftReplay(deepcopy(draft), **(given | options))


def test_a_draft_that_was_trained_for_some_tokens_proposes_no_others(target, draft, prompts, decoded):
    answered, vocabulary = answers_of(target, prompts), [1, 2, 4]
    found = replay_of(draft, draft_vocab=vocabulary).acceptance(answered, (3,), mode="independent")[3]
    assert found == decoded(draft, answered, 3, draft_vocab=vocabulary)
    assert found != replay_of(draft).acceptance(answered, (3,), mode="independent")[3]


def test_pard_at_every_length(target, draft, prompts, decoded):
    answered, ks = answers_of(target, prompts), range(1, MAX_K + 1)
    found = replay_of(draft).acceptance(answered, ks, mode="independent")
    for k in ks:
        assert found[k] == decoded(draft, answered, k)
    assert len({stats.num_drafts for stats in found.values()}) > 3
    assert 0 < found[MAX_K].accepted_per_position[-1] < found[MAX_K].num_drafts


@pytest.mark.parametrize("layers", [(-1,), (-1, -2, -4), (0, 4, -3)])
@pytest.mark.parametrize("hidden_size", [16, 24])
def test_pard2_in_both_modes(layers, hidden_size, target, prompts, decoded):
    draft = slightly_off(target) if hidden_size == 16 else make_llama(seed=4, hidden_size=hidden_size)
    answered, target_proj = answers_of(target, prompts), projection(target, draft, layers)
    replay = replay_of(draft, target=deepcopy(target), target_proj=target_proj)
    dependent, independent = (
        replay.acceptance(answered, (2, MAX_K), mode=mode) for mode in ("dependent", "independent")
    )
    for k in (2, MAX_K):
        assert dependent[k] == decoded(draft, answered, k, target_proj)
        assert independent[k] == decoded(draft, answered, k)
    assert dependent != independent, "the features matter"


def test_documents_side_by_side_do_not_change_each_other(target, draft, prompts, monkeypatch):
    answered, target_proj = answers_of(target, prompts), projection(target, draft, (-1, -2))
    replay = replay_of(draft, target=deepcopy(target), target_proj=target_proj)
    for mode in ("dependent", "independent"):
        together = replay.acceptance(answered, (3,), mode=mode)[3]
        alone = [replay.acceptance([document], (3,), mode=mode)[3] for document in answered]
        assert together == sum(alone, AcceptanceStats())
        monkeypatch.setattr(draft_replay, "ROWS_AT_ONCE", 400)
        assert 1 < len(list(draft_replay._portions(answered, MAX_K))) < len(answered)
        assert replay.acceptance(answered, (3,), mode=mode)[3] == together
        monkeypatch.undo()


@pytest.mark.parametrize("max_tokens", [2, 3, 7, 12])
def test_answers_that_are_cut(max_tokens, target, draft, prompts, decoded):
    answered = answers_of(target, prompts, max_tokens)
    found = replay_of(draft).acceptance(answered, (4,), mode="independent")[4]
    assert found == decoded(draft, answered, 4)
    assert found.num_accepted_tokens <= len(prompts) * (max_tokens - 1)


def test_answers_that_end(target, draft, prompts, decoded):
    end = answers_of(target, prompts[:1])[0].answer[5]
    answered = answers_of(target, prompts, eos_token_ids=(end,))
    assert len({len(each.answer) for each in answered}) > 2
    assert replay_of(draft).acceptance(answered, (4,), mode="independent")[4] == decoded(draft, answered, 4)


def test_an_answer_of_one_token_has_no_drafts(target, draft, prompts):
    replay = replay_of(draft)
    short = answers_of(target, prompts, 1)
    nothing = AcceptanceStats(accepted_per_position=(0, 0, 0))
    assert replay.acceptance(short, (3,), mode="independent") == {3: nothing}
    long = answers_of(target, prompts)
    mixed = [document for pair in zip(short, long, strict=True) for document in pair]
    assert replay.acceptance(mixed, (3,), mode="independent") == replay.acceptance(long, (3,), mode="independent")


@pytest.mark.parametrize("vocab_size", [VOCAB_SIZE - 1, VOCAB_SIZE + 2])
def test_a_target_of_another_vocabulary(vocab_size, draft, prompts, decoded):
    """Ids that only one of them knows: never drafted, or never accepted."""
    other = make_llama(seed=0, num_layers=4, vocab_size=vocab_size)
    prompts = [[min(token, vocab_size - 1) for token in prompt] for prompt in prompts]
    answered = answers_of(other, prompts)
    found = replay_of(draft, vocab_size=vocab_size).acceptance(answered, (4,), mode="independent")[4]
    assert found == decoded(draft, answered, 4, target=other)
    assert found.num_accepted_tokens > 0
    if vocab_size > VOCAB_SIZE:
        assert max(token for each in answered for token in each.answer) >= VOCAB_SIZE
    else:
        assert found != replay_of(draft).acceptance(answered, (4,), mode="independent")[4]


def test_what_can_not_be_replayed(target, draft):
    with pytest.raises(ReplayError, match="dependent mode needs a target and its target_proj; got none"):
        replay_of(draft).acceptance([], (1,), mode="dependent")
    with_bias = projection(target, draft, (-1,))._replace(bias=torch.zeros(16))
    with pytest.raises(ReplayError, match="a target_proj with a bias can't be replayed"):
        replay_of(draft, target=deepcopy(target), target_proj=with_bias)
