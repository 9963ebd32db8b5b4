from __future__ import annotations

import pytest
import torch

from vllm_pard.demo.text.corpus import training_samples
from vllm_pard.training.autoregressive import IGNORED, Phase, _phase_at, batch_rows, next_token_labels
from vllm_pard.training.packing import Document, encode, pack


def test_pack_keeps_every_document_whole_and_once():
    documents = [Document(tuple(range(10 * i, 10 * i + size)), 1) for i, size in enumerate((5, 3, 7, 2, 8, 4))]
    rows = pack(documents, length=10, pad_id=-7)
    found = []
    for r in range(len(rows)):
        for number in range(int(rows.documents[r].max()) + 1):
            found.append(tuple(rows.tokens[r][rows.documents[r] == number].tolist()))
    assert sorted(found) == sorted(document.tokens for document in documents)
    assert torch.equal(rows.tokens == -7, rows.documents == -1)


def test_labels_are_the_answer_tokens_and_end_only():
    rows = pack([Document((0, 11, 12, 13, 1), 3), Document((0, 21, 22, 1), 2)], length=10, pad_id=2)
    labels = next_token_labels(rows)
    assert rows.tokens.tolist() == [[0, 11, 12, 13, 1, 0, 21, 22, 1, 2]]
    x = IGNORED
    assert labels.tolist() == [[x, x, 13, 1, x, x, 22, 1, x, x]]


def test_encode_agrees_with_what_an_engine_tokenizes(tokenizer):
    (sample,) = training_samples(1, seed=5)
    (document,) = encode([sample], tokenizer)
    assert list(document.tokens[: document.answer_start]) == tokenizer(sample.prompt)["input_ids"]
    assert document.tokens[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(document.tokens[document.answer_start : -1]) == sample.completion


def test_a_document_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="row of 4 tokens; got one of 5"):
        pack([Document((0, 1, 2, 3, 4), 1)], length=4, pad_id=2)


def test_no_documents_are_refused():
    with pytest.raises(ValueError, match="at least one document"):
        pack([], length=4, pad_id=2)


def test_batches_visit_every_row_once_an_epoch_and_depend_on_the_step_alone():
    epoch = torch.cat([batch_rows(12, 4, step, seed=1) for step in range(3)])
    assert sorted(epoch.tolist()) == list(range(12))
    assert torch.equal(batch_rows(12, 4, 5, seed=1), batch_rows(12, 4, 5, seed=1))
    assert not torch.equal(batch_rows(12, 4, 0, seed=1), batch_rows(12, 4, 3, seed=1))


def test_phases_follow_each_other():
    phases = (Phase(num_steps=2, batch_size=1, length=8), Phase(num_steps=3, batch_size=1, length=16))
    assert [(_phase_at(phases, step)[0].length, _phase_at(phases, step)[1]) for step in range(5)] == [
        (8, 0),
        (8, 0),
        (16, 2),
        (16, 2),
        (16, 2),
    ]
    with pytest.raises(ValueError, match="under 5"):
        _phase_at(phases, 5)
