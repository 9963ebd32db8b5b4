"""The rows against literal loops, and against the reference's layout of P segments (PARD, arXiv 2504.18583)."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields

import pytest
import torch
from cod_batches import pack_of, random_pack

from vllm_pard.training.cod.attention import row_rule
from vllm_pard.training.cod.collator import Collator
from vllm_pard.training.cod.rows import (
    IGNORED,
    Rows,
    build_rows,
    chain_lengths,
    positions_in_documents,
    trained_run_lengths,
)
from vllm_pard.training.options.config import CodConfig

EVERYTHING = CodConfig(num_depths=4, retention=1, min_retention=1)


def rows_of(packs, cod=EVERYTHING, **options) -> Rows:
    return Rows(**Collator(cod=cod, seed=0, vocab_size=61, **options)(packs)["rows"])


def as_tuples(rows: Rows) -> list[tuple[int, ...]]:
    return list(zip(*(getattr(rows, field.name).tolist() for field in fields(Rows)), strict=True))


def defined_rows(packs, num_depths):
    """(anchor, depth, document, position, label) by the definition: all real depth-0 rows, and every deeper row whose
    chain predicts trained tokens of its document only."""
    found, first, number = set(), 0, 0
    for pack in packs:
        tokens, documents, trained = (pack[name].tolist() for name in ("tokens", "documents", "is_trained"))
        for n, document in enumerate(documents):
            if document < 0:
                continue
            place = n - documents.index(document)
            for i in range(num_depths):
                ahead = range(n + 1, n + i + 2)
                has_label = all(k < len(tokens) and documents[k] == document and trained[k] for k in ahead)
                if i == 0 or has_label:
                    label = tokens[n + i + 1] if has_label else IGNORED
                    found.add((first + n, i, number + document, place + i, label))
        first, number = first + len(tokens), number + max(documents) + 1
    return found


@pytest.mark.parametrize("num_depths", [1, 2, 4, 7])
@pytest.mark.parametrize("seed", range(3))
def test_rows_are_those_of_a_loop_over_anchors_and_depths(num_depths, seed):
    packs = [
        random_pack((12, 5, 9), seed=seed, num_padding=3),
        random_pack((2, 20), seed=seed + 10, draw=1),
        random_pack((1, 3), seed=seed + 20, num_padding=1, draw=2),
    ]
    rows = rows_of(packs, CodConfig(num_depths=num_depths, retention=1, min_retention=1))
    real = [row for row in as_tuples(rows) if row[2] >= 0]
    assert len(set(real)) == len(real)
    assert set(real) == defined_rows(packs, num_depths)
    assert len(as_tuples(rows)) - len(real) == 4, "padding stays a row at depth 0"


def test_tokens_come_first_then_chains_in_text_order():
    rows = rows_of([random_pack((12, 9))])
    assert rows.depths[:21].tolist() == [0] * 21
    assert rows.anchors[:21].tolist() == list(range(21))
    masks = list(zip(rows.anchors[21:].tolist(), rows.depths[21:].tolist(), strict=True))
    assert masks == sorted(masks)
    assert len(masks) > 20


@pytest.mark.parametrize("seed", range(40))
def test_chains_are_whole(seed):
    draws = torch.Generator().manual_seed(seed)
    retention = 0.3 + 0.7 * float(torch.rand((), generator=draws))
    cod = CodConfig(num_depths=1 + seed % 9, retention=retention, min_retention=retention * (0.1 + 0.02 * seed))
    lengths = torch.randint(1, 30, (4,), generator=draws).tolist()
    rows = rows_of([random_pack(lengths, seed=seed, num_padding=seed % 3), random_pack(lengths[::-1], draw=1)], cod)
    kept = Counter(row[:2] for row in as_tuples(rows))
    labelled = {row[:2] for row in as_tuples(rows) if row[4] != IGNORED}
    assert max(kept.values()) == 1
    assert all((anchor, depth - 1) in labelled for anchor, depth in kept if depth > 0)
    assert labelled <= {
        (n, i)
        for n, i, _, _, _ in defined_rows(
            [random_pack(lengths, seed=seed, num_padding=seed % 3), random_pack(lengths[::-1])], cod.num_depths
        )
    }


def test_each_depth_keeps_its_share_of_the_trained_anchors():
    cod = CodConfig(num_depths=8, retention=0.7, min_retention=0.2)
    assert cod.anchors_per_depth(512) == (512, 358, 250, 175, 122, 102, 102, 102)
    runs = torch.full((600,), 50)
    runs[512:] = 0  # no anchors
    lengths = chain_lengths(runs, torch.zeros(600, dtype=torch.int64), cod, [torch.Generator().manual_seed(3)])
    assert [int((lengths > depth).sum()) for depth in range(8)] == [512, 358, 250, 175, 122, 102, 102, 102]
    assert int(lengths[512:].sum()) == 0


def test_a_chain_that_is_cut_off_takes_nothing_from_others():
    """n_i counts what is drawn; what lies behind an answer's end is not drawn again elsewhere."""
    cod, packs = CodConfig(num_depths=6), torch.zeros(90, dtype=torch.int64)
    runs = torch.arange(90, 0, -1) % 10
    lengths = chain_lengths(runs, packs, cod, [torch.Generator().manual_seed(1)])
    drawn = chain_lengths(torch.where(runs > 0, 99, 0), packs, cod, [torch.Generator().manual_seed(1)])
    assert torch.equal(lengths, drawn.minimum(runs))
    assert bool((lengths < drawn).any())


def test_every_anchor_is_drawn_equally_often():
    cod, num_draws = CodConfig(num_depths=3, retention=0.5, min_retention=0.25), 2000
    runs, packs = torch.full((16,), 9), torch.zeros(16, dtype=torch.int64)
    deepest = sum(
        (chain_lengths(runs, packs, cod, [torch.Generator().manual_seed(seed)]) > 2).double()
        for seed in range(num_draws)
    )
    deviation = (num_draws * 0.25 * 0.75) ** 0.5
    assert deepest.sum() == num_draws * 4
    assert (deepest - num_draws * 0.25).abs().max() < 5 * deviation


def test_at_least_one_chain_is_kept_to_the_end():
    assert CodConfig(num_depths=8, retention=0.5, min_retention=0.1).anchors_per_depth(3) == (3, 1, 1, 1, 1, 1, 1, 1)
    assert CodConfig(num_depths=8).anchors_per_depth(0) == (0,) * 8


def test_no_row_is_without_a_real_token():
    """The reference trains up to P - 1 rows whose anchor is -1; here a document's first token is in no label."""
    packs = [pack_of([([7, 8, 9], [True] * 3), ([17, 18, 19, 20], [True] * 4)], num_padding=2)]
    rows = rows_of(packs)
    starts = {0: 0, 1: 3}
    real = [row for row in as_tuples(rows) if row[2] >= 0]
    assert all(anchor >= starts[document] for anchor, _, document, _, _ in real)
    assert {7, 17}.isdisjoint(label for *_, label in real)


def test_the_end_is_trained_and_the_prompt_is_not():
    end = 59
    packs = [pack_of([([1, 2, 3, 4, 5, end], [False, False, False, True, True, True])])]
    labels = Counter(row[4] for row in as_tuples(rows_of(packs)) if row[4] != IGNORED)
    assert labels == {4: 1, 5: 2, end: 3}
    assert {row[0] for row in as_tuples(rows_of(packs)) if row[1] > 0} == {2, 3}


def test_nothing_is_trained_in_padding_that_is_marked_so():
    pack = random_pack((8,), num_padding=4)
    pack["is_trained"][-4:] = True
    assert set(as_tuples(rows_of([pack]))) == set(as_tuples(rows_of([random_pack((8,), num_padding=4)])))


def test_the_rows_of_a_pack_do_not_depend_on_its_neighbours():
    cod = CodConfig(num_depths=5)
    packs = [random_pack((15, 11), seed=seed, num_padding=seed % 2, draw=seed) for seed in range(4)]

    def relative(chosen, number):
        first = sum(len(pack["tokens"]) for pack in chosen[:number])
        last, rows = first + len(chosen[number]["tokens"]), as_tuples(rows_of(chosen, cod))
        base = min(row[2] for row in rows if first <= row[0] < last and row[2] >= 0)
        return {(row[0] - first, row[1], max(row[2] - base, -1), *row[3:]) for row in rows if first <= row[0] < last}

    alone = [relative([pack], 0) for pack in packs]
    assert [relative(packs, number) for number in range(4)] == alone
    assert [relative(packs[::-1], 3 - number) for number in range(4)] == alone
    assert len({frozenset(rows) for rows in alone}) == 4


@pytest.mark.parametrize("multiple", [1, 8, 128])
def test_rows_are_padded_to_a_multiple(multiple):
    packs = [random_pack((15, 11))]
    rows, plain = rows_of(packs, multiple=multiple), as_tuples(rows_of(packs))
    assert len(rows.anchors) % multiple == 0
    assert len(rows.anchors) - len(plain) < multiple
    assert as_tuples(rows.at(slice(len(plain)))) == plain
    assert (rows.documents[len(plain) :] == -1).all()
    assert (rows.labels[len(plain) :] == IGNORED).all()


def test_positions_and_runs_by_hand():
    documents = torch.tensor([0, 0, 0, 1, 2, 2, -1, -1])
    trained = torch.tensor([True, True, True, True, False, True, True, True])
    assert positions_in_documents(documents).tolist() == [0, 1, 2, 0, 0, 1, 0, 1]
    assert trained_run_lengths(documents, trained).tolist() == [2, 1, 0, 0, 1, 0, 0, 0]


def reference_layout(length, num_depths):
    """(labels [P*L], mask [P*L, P*L]) as the paper's code lays them out: P segments of L rows, row p of segment i."""
    num_rows, tokens = num_depths * length, list(range(10, 10 + length))
    labels, mask = [], torch.zeros(num_rows, num_rows, dtype=torch.bool)
    for i in range(num_depths):
        shown = [IGNORED] * i + tokens[i:]
        labels += [*shown[1:], IGNORED]
        for p in range(length):
            row = i * length + p
            mask[row, row - torch.arange(i + 1) * (length + 1)] = True  # itself and the diagonal above
            mask[row, : max(p - i + 1, 0)] = True  # the real tokens up to the anchor
    return labels, mask


@pytest.mark.parametrize(("length", "num_depths"), [(6, 1), (6, 3), (12, 5), (9, 8)])
def test_the_reference_layout_is_the_same_where_nothing_is_dropped(length, num_depths):
    labels, mask = reference_layout(length, num_depths)
    pack = pack_of([(range(10, 10 + length), [True] * length)])
    rows = rows_of([pack], CodConfig(num_depths=num_depths, retention=1, min_retention=1))
    places = rows.depths * length + rows.anchors + rows.depths  # of our rows in the reference
    with_label = {row for row, label in enumerate(labels) if label != IGNORED}
    no_real_token = {i * length + i - 1 for i in range(1, num_depths)}
    ours = dict(zip(places.tolist(), rows.labels.tolist(), strict=True))
    assert {row for row, label in ours.items() if label != IGNORED} == with_label - no_real_token
    assert all(labels[row] == label for row, label in ours.items() if label != IGNORED)

    index, zero = torch.arange(len(places)), torch.tensor(0)
    seen = row_rule(rows, None)(zero, zero, index[:, None], index[None, :])
    assert torch.equal(seen, mask[places][:, places])
    others = torch.ones(num_depths * length, dtype=torch.bool)
    others[places] = False
    assert not mask[places][:, others].any(), "a row of the reference sees nothing that we leave out"


def test_the_published_counts_of_rows():
    """The paper's code: L 1024, P 16, r .7, r_min .1."""
    counts = CodConfig(num_depths=16, retention=0.7, min_retention=0.1).anchors_per_depth(1024)
    assert counts == (1024, 716, 501, 351, 245, 172, 120, *[102] * 9)


@pytest.mark.parametrize("length", [1, 2])
def test_documents_too_short_to_predict_anything_or_much(length):
    rows = rows_of([pack_of([(range(length), [True] * length)])])
    assert len(rows.anchors) == length
    assert int((rows.labels != IGNORED).sum()) == length - 1


def test_build_rows_of_no_chain():
    rows = build_rows(torch.arange(5), torch.zeros(5, dtype=torch.int64), torch.zeros(5, dtype=torch.int64))
    assert rows.depths.tolist() == [0] * 5
    assert (rows.labels == IGNORED).all()
