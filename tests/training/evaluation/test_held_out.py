"""Held-out acceptance: the sum over packs, however many processes share them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from cod_batches import VOCAB_SIZE, random_pack

from vllm_pard.metrics import AcceptanceStats
from vllm_pard.training.cod.collator import Collator
from vllm_pard.training.cod.rows import Rows, trained_run_lengths
from vllm_pard.training.evaluation.acceptance import accepted_tokens, at_every_anchor, replay
from vllm_pard.training.evaluation.held_out import HeldOut
from vllm_pard.training.options.config import CodConfig

K = 3
WHOLE = CodConfig(num_depths=K, retention=1, min_retention=1)


@pytest.fixture
def packs():
    return [random_pack((14, 9), seed=seed, num_padding=seed % 3, draw=seed) for seed in range(5)]


def predict(inputs):
    """Right two times in three, by what is predicted: the same for a row in whatever batch."""
    return torch.where((inputs["labels"] + inputs["teacher_rows"]) % 3 > 0, inputs["labels"], 0)


def accelerator(rank=0, num_processes=1):
    return SimpleNamespace(
        process_index=rank, num_processes=num_processes, device="cpu", reduce=lambda tensor, reduction: tensor
    )


def held_out(packs, **options):
    return HeldOut(packs, **{"num_speculative_tokens": K, "vocab_size": VOCAB_SIZE, **options})


def add(stats: list[AcceptanceStats]) -> AcceptanceStats:
    return AcceptanceStats(
        num_drafts=sum(s.num_drafts for s in stats),
        num_draft_tokens=sum(s.num_draft_tokens for s in stats),
        num_accepted_tokens=sum(s.num_accepted_tokens for s in stats),
        accepted_per_position=tuple(map(sum, zip(*(s.accepted_per_position for s in stats), strict=True))),
    )


def test_it_is_the_sum_over_the_packs(packs):
    replayed, everywhere, matched = [], [], []
    for pack in packs:
        batch = Collator(cod=WHOLE, seed=0, vocab_size=VOCAB_SIZE)([pack])
        matches = predict(batch) == batch["labels"]
        accepted = accepted_tokens(Rows(**batch["rows"]), len(pack["tokens"]), batch["labelled"], matches, K)
        replayed.append(replay(accepted, pack["is_trained"], pack["documents"], K))
        run_lengths = trained_run_lengths(pack["documents"], pack["is_trained"])
        everywhere.append(at_every_anchor(accepted, run_lengths, K))
        matched += matches.tolist()
    result = held_out(packs).measure(predict, accelerator())
    assert result.replayed == add(replayed)
    assert result.everywhere == add(everywhere)
    assert (result.num_labels, result.num_matches) == (len(matched), sum(matched))
    assert 0 < result.replayed.accepted_per_position[1] < result.replayed.accepted_per_position[0]


@pytest.mark.parametrize("num_processes", [2, 3, 7])
def test_processes_share_the_packs(packs, num_processes):
    alone, num_calls = held_out(packs).measure(predict, accelerator()), []
    shares = []
    for rank in range(num_processes):
        calls = []
        shares.append(
            held_out(packs).measure(
                lambda inputs, calls=calls: calls.append(1) or predict(inputs), accelerator(rank, num_processes)
            )
        )
        num_calls.append(len(calls))
    assert add([share.replayed for share in shares]) == alone.replayed
    assert add([share.everywhere for share in shares]) == alone.everywhere
    assert sum(share.num_labels for share in shares) == alone.num_labels
    assert sum(share.num_matches for share in shares) == alone.num_matches
    assert len(set(num_calls)) == 1, "a sharded model runs on all processes at once"


def test_what_is_reduced_is_what_is_told(packs):
    doubling = accelerator()
    doubling.reduce = lambda tensor, reduction: tensor * 2 if reduction == "sum" else None
    once, twice = held_out(packs).measure(predict, accelerator()), held_out(packs).measure(predict, doubling)
    assert twice.replayed == add([once.replayed] * 2)
    assert twice.num_matches == 2 * once.num_matches


def test_a_token_out_of_the_vocabulary_is_a_miss(packs):
    """Its drafts are counted all the same."""
    vocabulary = torch.arange(0, VOCAB_SIZE, 2)
    trimmed = held_out(packs, vocabulary=vocabulary, vocab_size=len(vocabulary))
    result = trimmed.measure(lambda inputs: inputs["labels"], accelerator())
    everything = held_out(packs).measure(lambda inputs: inputs["labels"], accelerator())
    assert result.everywhere.num_drafts == everything.everywhere.num_drafts
    assert result.num_matches == result.num_labels < everything.num_labels
    is_known = [
        bool(pack["is_trained"][n + 1] and pack["tokens"][n + 1] % 2 == 0)
        for pack in packs
        for n in range(len(pack["tokens"]) - 1)
        if pack["documents"][n] == pack["documents"][n + 1] >= 0
    ]
    assert result.everywhere.accepted_per_position[0] == sum(is_known)


def test_a_draft_that_is_always_right(packs):
    result = held_out(packs).measure(lambda inputs: inputs["labels"], accelerator())
    assert result.num_matches == result.num_labels
    lengths = [run for pack in packs for run in trained_run_lengths(pack["documents"], pack["is_trained"]).tolist()]
    assert result.everywhere.num_accepted_tokens == sum(min(run, K) for run in lengths)
