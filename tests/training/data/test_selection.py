"""The held-out part and the frequent tokens."""

from __future__ import annotations

import datasets
import pytest

from vllm_pard.training.data.config import DataError, Document
from vllm_pard.training.data.selection import frequent_tokens, hold_out, hold_out_of_stream

# Three answers to each of twenty prompts.
DOCUMENTS = [Document([prompt, number], [False, True], prompt) for number in range(3) for prompt in range(20)]
DATASET = datasets.Dataset.from_list([document._asdict() for document in DOCUMENTS])


def rows(documents) -> list[Document]:
    return [Document(**row) if isinstance(row, dict) else row for row in documents]


@pytest.mark.parametrize(("wanted", "held"), [(1, 3), (3, 3), (4, 6), (57, 57)])
def test_held_out_documents_share_no_prompt_with_the_others(wanted, held):
    train, evaluation = map(rows, hold_out(DATASET, wanted, seed=0))
    assert len(evaluation) == held
    assert sorted(train + evaluation) == sorted(DOCUMENTS)
    assert not {row.prompt for row in train} & {row.prompt for row in evaluation}


def test_the_seed_chooses():
    held_out = [rows(hold_out(DATASET, 6, seed=seed)[1]) for seed in (0, 0, 1)]
    assert held_out[0] == held_out[1] != held_out[2]


def test_a_streams_first_documents_are_held_out():
    train, evaluation = hold_out_of_stream(DOCUMENTS, 4)
    assert rows(evaluation) == DOCUMENTS[:4]
    for _ in range(2):
        assert rows(train) == [document for document in DOCUMENTS if document.prompt >= 4]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (58, "holding 58 documents out leaves none to train on: there are 60, with 20 different prompts; hold fewer"),
        (0, "at least one document must be held out; got 0"),
    ],
)
def test_too_many_or_too_few(wanted, message):
    with pytest.raises(DataError, match=message):
        hold_out(DATASET, wanted, seed=0)


def test_too_many_or_too_few_of_a_stream():
    for wanted, message in ((20, "out of the stream leaves none"), (0, "at least one document")):
        with pytest.raises(DataError, match=message):
            hold_out_of_stream(DOCUMENTS, wanted)


def test_frequent_tokens_are_counted_where_they_are_trained():
    documents = [
        Document([9, 9, 9, 5, 5, 7], [False, False, False, True, True, True]),
        Document([8, 7, 6, 7], [False, True, True, True]),
    ]
    for given in (documents, datasets.Dataset.from_list([document._asdict() for document in documents])):
        assert frequent_tokens(given, 2) == [5, 7]
        assert frequent_tokens(given, 2, always=[30]) == [7, 30]
        assert frequent_tokens(given, 9) == [5, 6, 7]
