"""Rows of whole documents, and the order in which they come."""

from __future__ import annotations

import random
import time

import datasets
import pytest
import torch
from torch.utils.data import DataLoader

from vllm_pard.training.data.config import DataError, Document
from vllm_pard.training.data.packing import ROWS_AT_ONCE, PackedDataset, StreamedPacks, pack

L = 16


def make_documents(num_documents: int, seed: int = 0) -> list[Document]:
    """Every token is its own: the document's number times 100 and its place."""
    generator = random.Random(seed)
    documents = []
    for number in range(num_documents):
        size = generator.randint(2, L)
        marks = [False, *(generator.random() < 0.5 for _ in range(size - 1))]
        documents.append(Document([100 * number + place for place in range(size)], marks))
    return documents


def to_dataset(documents: list[Document]) -> datasets.Dataset:
    return datasets.Dataset.from_list([document._asdict() for document in documents])


def unpack(item: dict[str, torch.Tensor]) -> list[Document]:
    """The documents of an item; padding is checked."""
    is_padding = item["documents"] == -1
    num_documents = int(item["documents"].max()) + 1
    assert item["documents"][~is_padding].tolist() == sorted(item["documents"][~is_padding].tolist())
    assert not is_padding[: int((~is_padding).sum())].any(), "padding comes last"
    assert not item["is_trained"][is_padding].any()
    found = []
    for number in range(num_documents):
        own = item["documents"] == number
        found.append(Document(item["tokens"][own].tolist(), item["is_trained"][own].tolist()))
    return found


def test_pack_takes_each_document_once_and_fills_no_row_too_far():
    lengths = [len(document.tokens) for document in make_documents(500)]
    rows = pack(lengths, L)
    assert sorted(document for row in rows for document in row) == list(range(500))
    assert max(sum(lengths[document] for document in row) for row in rows) <= L
    assert len(rows) <= 1.02 * sum(lengths) / L + 1


def test_pack_chooses_the_tightest_row():
    assert pack([5, 2, 8], 10) == [[2, 1], [0]]
    assert pack([9, 6, 7, 3, 4, 1], 10) == [[0, 5], [2, 3], [1, 4]]


def test_pack_is_fast():
    generator = random.Random(0)
    lengths = [min(4096, int(generator.lognormvariate(5.5, 1)) + 1) for _ in range(200_000)]
    start = time.process_time()
    rows = pack(lengths, 4096)
    assert time.process_time() - start < 5, "a fraction of a second on an idle core"
    assert sum(lengths) / (len(rows) * 4096) > 0.99


def test_rows_are_whole_documents():
    documents = make_documents(60)
    packed = PackedDataset(to_dataset(documents), max_length=L, seed=0)
    items = [packed[i] for i in range(len(packed))]
    for item in items:
        assert {name: (value.dtype, value.shape) for name, value in item.items() if name not in ("pack", "draw")} == {
            "tokens": (torch.int64, (L,)),
            "documents": (torch.int64, (L,)),
            "is_trained": (torch.bool, (L,)),
        }
    found = [document for item in items for document in unpack(item)]
    assert sorted(found) == sorted(document._replace(prompt=0) for document in documents)
    assert packed.in_words == f"{len(items)} rows of 16 tokens, {packed.num_tokens / len(items) / L:.1%} full"
    assert packed.num_tokens == sum(len(document.tokens) for document in documents)


def test_each_epoch_has_every_row_in_an_order_of_its_own():
    packed = PackedDataset(to_dataset(make_documents(60)), max_length=L, seed=0, num_epochs=2.5)
    num_rows = len(packed.rows)
    assert len(packed) == round(2.5 * num_rows)
    draws = [packed[i] for i in range(len(packed))]
    assert [item["draw"] for item in draws] == list(range(len(packed)))
    packs = [item["pack"] for item in draws]
    first, second = packs[:num_rows], packs[num_rows : 2 * num_rows]
    assert sorted(first) == sorted(second) == list(range(num_rows))
    assert first != second
    assert len(set(packs[2 * num_rows :])) == len(packs) - 2 * num_rows
    same = [item for item in draws if item["pack"] == 3]
    assert len(same) >= 2
    assert torch.equal(same[0]["tokens"], same[1]["tokens"])


def test_an_item_depends_on_the_seed_and_its_number_alone():
    dataset = to_dataset(make_documents(60))
    packed, again, other = (PackedDataset(dataset, max_length=L, seed=seed, num_draws=100) for seed in (7, 7, 8))
    assert len(packed) == 100
    backwards = {i: again[i]["pack"] for i in reversed(range(100))}
    assert [packed[i]["pack"] for i in range(100)] == [backwards[i] for i in range(100)]
    assert [packed[i]["pack"] for i in range(100)] != [other[i]["pack"] for i in range(100)]
    with pytest.raises(IndexError):
        packed[100]


def test_chosen_documents_are_packed():
    documents = make_documents(60)
    packed = PackedDataset(to_dataset(documents).select([5, 3, 40]), max_length=L, seed=0)
    found = [document.tokens for i in range(len(packed)) for document in unpack(packed[i])]
    assert sorted(found) == sorted(documents[i].tokens for i in (5, 3, 40))


def test_workers_give_the_same_items():
    packed = PackedDataset(to_dataset(make_documents(60)), max_length=L, seed=0)
    batches = list(DataLoader(packed, batch_size=3, num_workers=2))
    assert torch.cat([batch["draw"] for batch in batches]).tolist() == list(range(len(packed)))
    assert torch.equal(batches[1]["tokens"][0], packed[3]["tokens"])


def test_wrong_documents():
    with pytest.raises(DataError, match="row of 4 tokens; got one of 5"):
        pack([2, 5, 1], 4)
    with pytest.raises(DataError, match="at least one document; got none"):
        PackedDataset(to_dataset(make_documents(3)).select([]), max_length=L, seed=0)


def test_a_streams_packs_are_its_documents_well_packed():
    documents = make_documents(3000)
    items = list(StreamedPacks(documents, max_length=L, seed=0))
    found = [document for item in items for document in unpack(item)]
    assert sorted(found) == sorted(documents)
    assert found[: ROWS_AT_ONCE // 2] != sorted(found[: ROWS_AT_ONCE // 2]), "portions are shuffled"
    assert len(items) < 1.03 * sum(len(document.tokens) for document in documents) / L
    assert [item["pack"] for item in items] == [item["draw"] for item in items] == list(range(len(items)))


def test_a_stream_is_read_again_until_all_draws_are_made():
    documents = make_documents(400)
    once = list(StreamedPacks(documents, max_length=L, seed=3))
    num_draws = 2 * len(once) + 5
    items = list(StreamedPacks(documents, max_length=L, seed=3, num_draws=num_draws))
    assert [item["draw"] for item in items] == list(range(num_draws))
    assert [item["pack"] for item in items] == [i % len(once) for i in range(num_draws)]
    assert all(torch.equal(item["tokens"], once[item["pack"]]["tokens"]) for item in items)
    other = list(StreamedPacks(documents, max_length=L, seed=4))
    assert any(not torch.equal(a["tokens"], b["tokens"]) for a, b in zip(once, other, strict=False))


def test_workers_share_a_stream():
    packs = StreamedPacks(make_documents(400), max_length=L, seed=0)
    alone = list(packs)
    shared = sorted(int(item["draw"]) for item in DataLoader(packs, batch_size=None, num_workers=2))
    assert shared == [item["draw"] for item in alone]


def test_an_empty_stream_does_not_hang():
    with pytest.raises(DataError, match="no document"):
        list(StreamedPacks([], max_length=L, seed=0, num_draws=5))
