"""Acceptance told from one forward, against drafts that are really decoded one step after another."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from cod_batches import MASK, pack_of, tiny_model

from vllm_pard.training.cod.collator import Collator
from vllm_pard.training.cod.rows import Rows, trained_run_lengths
from vllm_pard.training.evaluation.acceptance import accepted_tokens, at_every_anchor, replay
from vllm_pard.training.models.parallel_draft import ParallelDraft
from vllm_pard.training.options.config import CodConfig, LossConfig

K = 4


def draft_tokens(stock, prefix, num_tokens=K):
    """One forward: the last real token and K - 1 masks."""
    literal = torch.tensor([[*prefix, *[MASK] * (num_tokens - 1)]])
    with torch.no_grad():
        return stock(input_ids=literal).logits[0, -num_tokens:].argmax(-1).tolist()


def answer_of(stock, prompt, length, generator):
    """A target that says what the draft would, up to K tokens at a time, and now and then something else."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + length:
        num_right = int(torch.randint(K + 1, (), generator=generator))
        tokens += [*draft_tokens(stock, tokens)[:num_right], int(torch.randint(MASK, (), generator=generator))]
    return tokens[: len(prompt) + length]


def document(stock, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens, trained = [], []
    for prompt_length, answer_length in ((4, 13), (3, 8), (2, 1 + seed % 3)):
        before = len(tokens)
        tokens += torch.randint(MASK, (prompt_length,), generator=generator).tolist()
        tokens = answer_of(stock, tokens, answer_length, generator)
        trained += [place - before >= prompt_length for place in range(before, len(tokens))]
    return tokens, trained


@pytest.fixture(scope="module")
def stock():
    return tiny_model("qwen3")


@pytest.fixture(scope="module")
def packs(stock):
    return [
        pack_of([document(stock, 0), document(stock, 1)], num_padding=3),
        pack_of([document(stock, 2)], draw=1),
        pack_of([document(stock, 3), ([5, 6, 7], [True] * 3)], draw=2),
        pack_of([document(stock, 4), document(stock, 5)], draw=3),
    ]


def really_decoded(stock, pack):
    """(accepted of each step of greedy decoding, accepted of a draft at every token before an answer's token)"""
    steps, everywhere = [], []
    tokens, documents, trained = (pack[name].tolist() for name in ("tokens", "documents", "is_trained"))

    def accepted_at(n):
        start, count = documents.index(documents[n]), 0
        for j, token in enumerate(draft_tokens(stock, tokens[start : n + 1]), start=1):
            goes_on = n + j < len(tokens) and documents[n + j] == documents[n] and trained[n + j]
            if not goes_on or tokens[n + j] != token:
                break
            count += 1
        return count

    n = 0
    while n < len(tokens) - 1:
        is_in_answer = trained[n] and documents[n] == documents[n + 1] and trained[n + 1]
        if is_in_answer:
            steps.append(accepted_at(n))
        n += steps[-1] + 1 if is_in_answer else 1
    for n in range(len(tokens) - 1):
        if documents[n] >= 0 and documents[n] == documents[n + 1] and trained[n + 1]:
            everywhere.append(accepted_at(n))
    return steps, everywhere


def told(stock, pack):
    draft = ParallelDraft(deepcopy(stock), mask_token_id=MASK, loss=LossConfig(), num_depths=K)
    batch = Collator(cod=CodConfig(num_depths=K, retention=1, min_retention=1), seed=0, vocab_size=61)([pack])
    with torch.no_grad():
        matches = draft(**batch, predicts=True)["predictions"] == batch["labels"]
    return accepted_tokens(Rows(**batch["rows"]), len(pack["tokens"]), batch["labelled"], matches, K)


def check(stats, accepted):
    assert stats.num_drafts == len(accepted)
    assert stats.num_draft_tokens == K * len(accepted)
    assert stats.num_accepted_tokens == sum(accepted)
    assert stats.accepted_per_position == tuple(sum(count > place for count in accepted) for place in range(K))


@pytest.mark.parametrize("number", range(4))
def test_counts_are_those_of_real_decoding(stock, packs, number):
    pack = packs[number]
    steps, everywhere = really_decoded(stock, pack)
    accepted = told(stock, pack)
    check(replay(accepted, pack["is_trained"], pack["documents"], K), steps)
    check(at_every_anchor(accepted, trained_run_lengths(pack["documents"], pack["is_trained"]), K), everywhere)
    assert len(set(steps)) >= 3, "hits and misses"


def test_acceptance_by_hand():
    rows = Rows(
        anchors=torch.tensor([0, 1, 2, 0, 0, 1]),
        depths=torch.tensor([0, 0, 0, 1, 2, 1]),
        documents=torch.zeros(6, dtype=torch.int64),
        positions=torch.zeros(6, dtype=torch.int64),
        labels=torch.tensor([7, 8, 9, 8, 9, 9]),
    )
    matches = torch.tensor([True, False, True, True, False, True])
    assert accepted_tokens(rows, 4, torch.arange(6), matches, 3).tolist() == [2, 0, 1, 0]


def test_a_replay_by_hand():
    """Drafts at 2 (two accepted), then at 5; the other answer at 8 and 9. An answer's last token drafts nothing."""
    accepted = torch.tensor([9, 9, 2, 9, 9, 1, 9, 9, 0, 0, 9, 9])
    trained = torch.tensor([False] * 2 + [True] * 5 + [False] + [True] * 3 + [False])
    stats = replay(accepted, trained, torch.zeros(12, dtype=torch.int64), 9)
    assert (stats.num_drafts, stats.num_accepted_tokens) == (4, 3)
    assert stats.accepted_per_position[:3] == (2, 1, 0)


def test_answers_of_neighbours_are_two_answers():
    accepted, trained = torch.zeros(6, dtype=torch.int64), torch.ones(6, dtype=torch.bool)
    assert replay(accepted, trained, torch.tensor([0, 0, 0, 1, 1, 1]), K).num_drafts == 4
    assert replay(accepted, trained, torch.zeros(6, dtype=torch.int64), K).num_drafts == 5


def test_no_answer():
    stats = replay(torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.bool), torch.zeros(3), K)
    assert (stats.num_drafts, stats.accepted_per_position) == (0, (0,) * K)
