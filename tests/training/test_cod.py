"""The COD layout against a construction that shares no code with it: a literal loop over anchors and depths."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from vllm_pard.training.autoregressive import IGNORED
from vllm_pard.training.cod import CodConfig, build_rows, order_anchors, trained_anchors
from vllm_pard.training.cod_attention import attention_mask, block_mask, dense_mask, mask_rule
from vllm_pard.training.cod_loss import cod_logits
from vllm_pard.training.packing import Document, PackedRows, pack

MASK_ID = 3
EVERYTHING = CodConfig(num_depths=4, retention=1.0, min_retention=1.0)
# fp32 sums of 24 terms in another order
LOGIT_TOL = {"atol": 1e-4, "rtol": 1e-4}


def documents():
    return [
        Document((0, 10, 11, 12, 13, 14, 15, 1), answer_start=3),
        Document((0, 20, 21, 22, 1), answer_start=2),
        Document((0, 30, 31, 16, 17, 18, 1), answer_start=4),
    ]


def batch() -> PackedRows:
    return pack(documents(), length=16, pad_id=2)


def rows_of(config, *, answers_only=False, seed=0, packed=None):
    generator = torch.Generator().manual_seed(seed)
    return build_rows(packed or batch(), config, MASK_ID, answers_only, generator)


def token_documents(packed, b):
    """The documents of one row, as (start, tokens, answer_start)."""
    by_tokens = {document.tokens: document for document in documents()}
    found, start = [], 0
    for number in range(int(packed.documents[b].max()) + 1):
        tokens = tuple(packed.tokens[b][packed.documents[b] == number].tolist())
        found.append((start, tokens, by_tokens[tokens].answer_start))
        start += len(tokens)
    return found


@pytest.mark.parametrize("answers_only", [False, True], ids=["all tokens", "answers only"])
def test_rows_are_those_of_a_loop_over_anchors_and_depths(answers_only):
    packed = batch()
    rows = rows_of(EVERYTHING, answers_only=answers_only)
    for b in range(len(packed)):
        got = {}
        fields = (rows.anchors, rows.depths, rows.tokens, rows.positions, rows.labels)
        for anchor, depth, *values in zip(*(field[b].tolist() for field in fields), strict=True):
            got[anchor, depth] = tuple(values)
        assert len(got) == 4 * 16
        for start, tokens, answer_start in token_documents(packed, b):
            for n, token in enumerate(tokens):
                for i in range(4):
                    has_label = n + i + 1 < len(tokens) and (not answers_only or n + 1 >= answer_start)
                    label = tokens[n + i + 1] if has_label else IGNORED
                    assert got[start + n, i] == (token if i == 0 else MASK_ID, n + i, label)


@pytest.mark.parametrize("b", [0, 1])
def test_each_row_gives_the_logits_of_its_own_little_sequence(tiny_llama, b):
    packed = batch()
    rows = rows_of(CodConfig(num_depths=4, retention=0.7, min_retention=0.2))
    with torch.inference_mode():
        logits = cod_logits(tiny_llama, rows, dense_mask(rows))[b]
    num_compared = 0
    for r, (anchor, depth) in enumerate(zip(rows.anchors[b].tolist(), rows.depths[b].tolist(), strict=True)):
        if rows.documents[b, r] < 0:
            continue
        start, tokens, _ = token_documents(packed, b)[int(rows.documents[b, r])]
        literal = [*tokens[: anchor - start + 1], *[MASK_ID] * depth]
        with torch.inference_mode():
            alone = tiny_llama(input_ids=torch.tensor([literal])).logits[0, -1]
        torch.testing.assert_close(logits[r], alone, **LOGIT_TOL)
        num_compared += 1
    assert num_compared > 16


def test_the_comparison_would_see_a_wrong_mask(tiny_llama):
    rows = rows_of(EVERYTHING)
    right = dense_mask(rows)
    deeper = (rows.depths[:, None, :, None] > 0) & (rows.anchors[:, None, None, :] <= rows.anchors[:, None, :, None])
    with torch.inference_mode():
        difference = (cod_logits(tiny_llama, rows, right) - cod_logits(tiny_llama, rows, right | deeper)).abs()
    assert difference[rows.depths > 0].max() > 0.1


def test_mask_is_the_rule_read_out_row_by_row():
    rows = rows_of(CodConfig(num_depths=3, retention=0.7, min_retention=0.4))
    mask = dense_mask(rows)
    for b in range(rows.anchors.shape[0]):
        keys = list(zip(*(f[b].tolist() for f in (rows.anchors, rows.depths, rows.documents)), strict=True))
        for q, (n, s, document) in enumerate(keys):
            seen = {(m, d) for m, d, other in keys if other == document and d == 0 and m <= n}
            seen |= {(n, d) for d in range(s + 1)}
            assert {keys[k][:2] for k in mask[b, 0, q].nonzero().flatten().tolist()} == seen


def test_block_mask_covers_all_that_the_dense_mask_allows():
    rows = rows_of(EVERYTHING)
    blocks = block_mask(rows)
    assert blocks.shape == (len(rows.anchors), 1, 64, 64)
    assert isinstance(attention_mask(rows, "sdpa"), torch.Tensor)
    b = torch.zeros((), dtype=torch.int64)
    rule = mask_rule(rows)
    q, k = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    assert torch.equal(rule(b, b, q, k), dense_mask(rows)[0, 0])
    assert torch.equal(blocks.mask_mod(b, b, q, k), dense_mask(rows)[0, 0])


def test_an_attention_without_such_a_mask_is_refused():
    with pytest.raises(ValueError, match=r"'sdpa' or 'flex_attention'.*got 'flash_attention_2'"):
        attention_mask(rows_of(EVERYTHING), "flash_attention_2")


@pytest.mark.parametrize("seed", range(5))
def test_kept_anchors_are_nested(seed):
    rows = rows_of(CodConfig(num_depths=8, retention=0.7, min_retention=0.2), seed=seed)
    for b in range(rows.anchors.shape[0]):
        kept = [set(rows.anchors[b][rows.depths[b] == i].tolist()) for i in range(8)]
        assert kept[0] == set(range(16))
        assert all(deeper <= shallower for shallower, deeper in pairwise(kept))


@pytest.mark.parametrize(
    ("length", "counts"),
    [(512, (512, 358, 250, 175, 122, 102, 102, 102)), (16, (16, 11, 7, 5, 3, 3, 3, 3))],
)
def test_row_counts_follow_the_formula(length, counts):
    assert CodConfig().rows_per_depth(length) == counts


def test_row_counts_of_a_batch_do_not_depend_on_its_text():
    rows = rows_of(CodConfig())
    assert rows.depths.shape == (len(batch()), sum(CodConfig().rows_per_depth(16)))
    assert torch.equal(rows.depths[0].bincount(), torch.tensor(CodConfig().rows_per_depth(16)))


def test_anchors_with_a_label_come_first():
    trained = trained_anchors(batch(), answers_only=True)
    order = order_anchors(trained, torch.Generator().manual_seed(0))
    ranked = trained.gather(1, order).int()
    assert torch.equal(ranked, ranked.sort(dim=1, descending=True).values)
    assert torch.equal(order.sort(dim=1).values, torch.arange(16).expand_as(order))


def test_end_is_trained_and_nothing_past_it():
    rows = rows_of(EVERYTHING, answers_only=True)
    assert (rows.labels[rows.depths == 0] == 1).sum() == 3
    assert not (rows.labels == 0).any()
    assert not (rows.labels == 2).any()


def test_equal_seeds_give_equal_rows():
    config = CodConfig()
    assert torch.equal(rows_of(config, seed=1).anchors, rows_of(config, seed=1).anchors)
    assert not torch.equal(rows_of(config, seed=1).anchors, rows_of(config, seed=2).anchors)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_depths": 0}, "num_depths must be 1 or more; got 0"),
        ({"retention": 0.0}, "retention=0.0"),
        ({"retention": 1.5}, "retention=1.5"),
        ({"min_retention": 0.0}, "min_retention=0.0"),
        ({"retention": 0.3, "min_retention": 0.5}, "min_retention=0.5, retention=0.3"),
        ({"retention": float("nan")}, "retention=nan"),
    ],
)
def test_values_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        CodConfig(**wrong)
