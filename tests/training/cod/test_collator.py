"""What a batch holds beside its rows."""

from __future__ import annotations

import pytest
import torch
from cod_batches import pack_of, random_pack

from vllm_pard.training.cod import collator
from vllm_pard.training.cod.collator import Collator
from vllm_pard.training.cod.rows import IGNORED, Rows
from vllm_pard.training.options.config import CodConfig

COD = CodConfig(num_depths=5)


def collate(packs, **options):
    return Collator(**{"cod": COD, "seed": 0, "vocab_size": 61, **options})(packs)


@pytest.fixture
def packs():
    return [
        random_pack((14, 9), num_padding=3),
        random_pack((16,), seed=1, draw=1),
        random_pack((3, 8), seed=2, draw=2),
    ]


def test_documents_are_numbered_through_the_batch(packs):
    batch = collate(packs)
    lengths = [14, 9, 3, 16, 3, 8]
    wanted = [number for number, length in zip([0, 1, -1, 2, 3, 4], lengths, strict=True) for _ in range(length)]
    assert batch["rows"]["documents"][:53].tolist() == wanted
    assert torch.equal(batch["tokens"], torch.cat([pack["tokens"] for pack in packs]))


def test_labelled_rows_come_by_the_token_that_they_predict_from(packs):
    batch = collate(packs)
    rows, labelled = Rows(**batch["rows"]), batch["labelled"]
    assert set(labelled.tolist()) == set((rows.labels != IGNORED).nonzero()[:, 0].tolist())
    source = (rows.anchors + rows.depths)[labelled]
    assert source.tolist() == sorted(source.tolist())
    assert torch.equal(batch["positions"][batch["teacher_rows"]], source)
    assert batch["positions"].tolist() == sorted(set(source.tolist()))
    assert torch.equal(batch["labels"], batch["tokens"][source + 1])


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_cover_the_labelled_rows(monkeypatch, packs, chunk):
    monkeypatch.setattr(collator, "LOGITS_AT_ONCE", chunk * 61 + 60)
    batch = collate(packs)
    covered = [range(part.start, part.stop) for part in batch["chunks"]]
    assert [row for part in covered for row in part] == list(range(len(batch["labels"])))
    assert max(map(len, covered)) <= chunk
    for part in batch["chunks"]:
        assert set(batch["teacher_rows"][part.start : part.stop].tolist()) == set(range(part.first, part.last))


def test_a_vocabulary_that_is_larger_than_a_chunk_still_has_chunks(monkeypatch, packs):
    monkeypatch.setattr(collator, "LOGITS_AT_ONCE", 60)
    assert len(collate(packs)["chunks"]) == len(collate(packs)["labels"])


def test_rows_that_follow_a_token_out_of_the_vocabulary_are_left_out():
    tokens = [1, 2, 3, 4, 5, 6]
    whole = CodConfig(num_depths=3, retention=1, min_retention=1)
    vocabulary = torch.tensor([1, 2, 3, 5, 6])
    batch = collate([pack_of([(tokens, [True] * 6)])], cod=whole, vocabulary=vocabulary, vocab_size=5)
    rows, labelled = Rows(**batch["rows"]), batch["labelled"]
    found = {(int(rows.anchors[r]), int(rows.depths[r]), int(rows.labels[r])) for r in labelled}
    assert found == {(0, 0, 2), (0, 1, 3), (1, 0, 3), (3, 0, 5), (3, 1, 6), (4, 0, 6)}
    assert torch.equal(vocabulary[batch["labels"]], rows.labels[labelled])


def test_what_a_pack_trains_is_drawn_by_seed_and_draw(packs):
    def drawn(seed, draw):
        batch = collate([packs[1] | {"draw": draw}], seed=seed, feature_dropout=0.5)
        return tuple(batch["rows"]["anchors"].tolist()), tuple(batch["keeps_features"].tolist())

    assert drawn(0, 1) == drawn(0, 1)
    found = {(seed, draw): drawn(seed, draw) for seed in range(4) for draw in range(4)}
    assert len({anchors for anchors, _ in found.values()}) == 16, "seeds and draws that differ in few bits differ"
    assert len({keeps for _, keeps in found.values()}) == 2


def test_whole_documents_lose_their_features():
    documents = [8] * 50
    batch = collate([random_pack(documents, seed=i, draw=i, num_padding=2) for i in range(8)], feature_dropout=0.3)
    keeps, numbers = batch["keeps_features"], batch["rows"]["documents"][: len(batch["tokens"])]
    shares = [keeps[numbers == number].float().mean().item() for number in range(400)]
    assert set(shares) == {0.0, 1.0}
    # five standard deviations of 400 draws
    assert sum(shares) / 400 == pytest.approx(0.7, abs=5 * (0.3 * 0.7 / 400) ** 0.5)


def test_features_of_a_pack_do_not_depend_on_its_neighbours(packs):
    alone = [collate([pack], feature_dropout=0.5)["keeps_features"] for pack in packs]
    assert torch.equal(collate(packs, feature_dropout=0.5)["keeps_features"], torch.cat(alone))
    assert torch.equal(collate(packs[::-1], feature_dropout=0.5)["keeps_features"], torch.cat(alone[::-1]))


def test_the_rows_do_not_depend_on_the_dropout(packs):
    plain, dropping = collate(packs)["rows"], collate(packs, feature_dropout=0.5)["rows"]
    assert all(torch.equal(plain[name], dropping[name]) for name in plain)


@pytest.mark.parametrize(("dropout", "kept"), [(None, None), (0.0, True)])
def test_without_dropout_all_features_are_kept(packs, dropout, kept):
    batch = collate(packs, feature_dropout=dropout)
    assert ("keeps_features" in batch) == (kept is not None)
    assert kept is None or bool(batch["keeps_features"].all())


def test_a_pack_of_padding_alone():
    batch = collate([random_pack((), num_padding=4), random_pack((9,), draw=1)])
    assert batch["rows"]["documents"][:13].tolist() == [-1] * 4 + [0] * 9
    assert torch.equal(batch["labels"].sort().values, collate([random_pack((9,), draw=1)])["labels"].sort().values)


def test_a_batch_without_a_label():
    batch = collate([pack_of([([1, 2, 3], [False] * 3)])])
    assert len(batch["labels"]) == len(batch["positions"]) == 0
    assert len(batch["chunks"]) == 1
