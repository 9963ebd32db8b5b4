"""Every loss and weight against a plain formula in float64."""

from __future__ import annotations

import math

import pytest
import torch
from cod_batches import pack_of, random_pack

from vllm_pard.training.cod.collator import Collator
from vllm_pard.training.cod.rows import IGNORED, Rows
from vllm_pard.training.losses import (
    cat_weights,
    cross_entropy,
    d_pace_weights,
    forward_kl,
    likelihood_of_acceptance,
    total_variation,
)
from vllm_pard.training.options.config import CodConfig

FLOAT_TOL = {"atol": 2e-6, "rtol": 2e-6}  # float32 against float64
LOSSES = [forward_kl, total_variation, likelihood_of_acceptance]


def logits(seed):
    return 3 * torch.randn(5, 7, generator=torch.Generator().manual_seed(seed))


def log_probs(seed):
    return logits(seed).log_softmax(-1)


def probabilities(values) -> list[list[float]]:
    return [[math.exp(x) / sum(map(math.exp, row)) for x in row] for row in values.tolist()]


def formula(loss, p, q):
    """For one row, of the probabilities of the target and of the draft."""
    overlap = sum(map(min, p, q))
    if loss is forward_kl:
        return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
    return 1 - overlap if loss is total_variation else -math.log(overlap)


@pytest.mark.parametrize("loss", LOSSES)
def test_distillation_is_its_formula(loss):
    draft, teacher = logits(0), logits(1)
    found = loss(log_probs(0), log_probs(1))
    wanted = [formula(loss, p, q) for p, q in zip(probabilities(teacher), probabilities(draft), strict=True)]
    torch.testing.assert_close(found, torch.tensor(wanted), **FLOAT_TOL)
    swapped = [formula(loss, p, q) for p, q in zip(probabilities(draft), probabilities(teacher), strict=True)]
    assert (loss is forward_kl) == (max(abs(a - b) for a, b in zip(wanted, swapped, strict=True)) > 0.01)


def test_cross_entropy_is_its_formula():
    labels = [0, 6, 3, 3, 2]
    wanted = [-math.log(row[label]) for row, label in zip(probabilities(logits(0)), labels, strict=True)]
    torch.testing.assert_close(cross_entropy(log_probs(0), torch.tensor(labels)), torch.tensor(wanted), **FLOAT_TOL)


def test_a_draft_that_is_the_target_loses_nothing():
    for loss in LOSSES:
        torch.testing.assert_close(loss(log_probs(0), log_probs(0)), torch.zeros(5), atol=1e-6, rtol=0)


def test_total_variation_is_half_the_sum_of_differences():
    p, q = logits(1).double().softmax(-1), logits(0).double().softmax(-1)
    half = (p - q).abs().sum(-1) / 2
    torch.testing.assert_close(total_variation(log_probs(0), log_probs(1)).double(), half, **FLOAT_TOL)
    torch.testing.assert_close(
        likelihood_of_acceptance(log_probs(0), log_probs(1)).double(), -(1 - half).log(), **FLOAT_TOL
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_the_formula(loss):
    """By hand: with q = softmax(z), dq_x/dz_y = q_x (1[x = y] - q_y)."""
    draft, teacher = logits(0).requires_grad_(), logits(1)
    loss(draft.log_softmax(-1), teacher.log_softmax(-1)).sum().backward()
    p, q = teacher.double().softmax(-1), draft.detach().double().softmax(-1)
    taken = torch.where(q < p, q, 0.0)  # where the draft's probability is the smaller one, it is what counts
    rise = taken - q * taken.sum(-1, keepdim=True)  # of the overlap
    overlap = torch.minimum(p, q).sum(-1, keepdim=True)
    wanted = {forward_kl: q - p, total_variation: -rise, likelihood_of_acceptance: -rise / overlap}[loss]
    torch.testing.assert_close(draft.grad.double(), wanted, **FLOAT_TOL)


def test_where_the_draft_is_far_off_lk_still_learns():
    draft = torch.tensor([[30.0, 0.0, 0.0]])
    teacher = torch.tensor([[0.0, 30.0, 0.0]])
    sizes = []
    for loss in (total_variation, likelihood_of_acceptance):
        moved = draft.clone().requires_grad_()
        loss(moved.log_softmax(-1), teacher.log_softmax(-1)).sum().backward()
        sizes.append(float(moved.grad.abs().max()))
    assert sizes[0] < 1e-10
    assert sizes[1] > 0.4


def rows_of(packs, num_depths, retention=1.0):
    cod = CodConfig(num_depths=num_depths, retention=retention, min_retention=retention)
    batch = Collator(cod=cod, seed=0, vocab_size=61)(packs)
    return Rows(**batch["rows"]), batch["tokens"]


def test_cat_is_the_product_of_the_targets_probabilities_along_a_chain():
    rows, tokens = rows_of([random_pack((12, 9), num_padding=2), random_pack((8,), draw=1)], 5)
    g = torch.rand(len(tokens), generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    found = cat_weights(rows, g.log())
    assert found.dtype == torch.float32
    for r in (rows.documents >= 0).nonzero()[:, 0].tolist():
        n, i = int(rows.anchors[r]), int(rows.depths[r])
        wanted = math.prod(float(g[n + j]) for j in range(1, i + 1))
        assert float(found[r]) == pytest.approx(wanted, rel=1e-5)


def test_cat_of_the_worked_example():
    """L = 5, P = 3: (segment, position) -> weight, as tabled for the paper's layout."""
    rows, _ = rows_of([pack_of([(range(5), [True] * 5)])], 3)
    _, g1, g2, g3, _ = g = [0.1, 0.9, 0.8, 0.7, 0.6]
    found = cat_weights(rows, torch.tensor(g).log())
    places = zip(rows.depths.tolist(), (rows.anchors + rows.depths).tolist(), rows.labels.tolist(), strict=True)
    weights = {place[:2]: float(weight) for place, weight in zip(places, found, strict=True) if place[2] != IGNORED}
    wanted = {
        (0, 0): 1, (0, 1): 1, (0, 2): 1, (0, 3): 1,
        (1, 1): g1, (1, 2): g2, (1, 3): g3,
        (2, 2): g1 * g2, (2, 3): g2 * g3,
    }  # fmt: skip
    assert weights == pytest.approx(wanted, rel=1e-6)


def test_cat_of_a_long_text_keeps_its_digits():
    """The sum over a whole batch of log-probabilities is large; the difference of two of them must not suffer."""
    rows, tokens = rows_of([pack_of([([0] * 4000, [True] * 4000)])], 3)
    found = cat_weights(rows, torch.full((len(tokens),), math.log(0.01)))
    torch.testing.assert_close(found, torch.tensor(0.01) ** rows.depths, atol=0, rtol=1e-5)


def test_cat_gives_no_gradient():
    rows, tokens = rows_of([random_pack((12,))], 3)
    assert not cat_weights(rows, torch.zeros(len(tokens), requires_grad=True)).requires_grad


def labelled_chains(rows):
    chains: dict[int, list[int]] = {}
    for r in (rows.labels != IGNORED).nonzero()[:, 0].tolist():
        chains.setdefault(int(rows.anchors[r]), []).append(r)
    return chains.values()


@pytest.mark.parametrize("smoothing", [0.0, 0.3, 1.0])
def test_d_pace_is_the_gradient_of_the_expected_accepted_tokens(smoothing):
    rows, _ = rows_of([random_pack((12, 9), num_padding=2), random_pack((8,), draw=1)], 5, retention=0.6)
    log_probs = -3 * torch.rand(len(rows.labels), generator=torch.Generator().manual_seed(0))
    found = d_pace_weights(rows, log_probs, num_depths=5, smoothing=smoothing)
    assert found.dtype == torch.float32
    smoothed = (smoothing + (1 - smoothing) * log_probs.double().exp()).log().requires_grad_()
    expected = sum(smoothed[chain[: k + 1]].sum().exp() for chain in labelled_chains(rows) for k in range(len(chain)))
    expected.backward()
    torch.testing.assert_close(found.double(), smoothed.grad, **FLOAT_TOL)
    assert max(map(len, labelled_chains(rows))) == 5


def test_d_pace_by_hand():
    rows, _ = rows_of([pack_of([(range(4), [True] * 4)])], 3)
    places = dict(zip(zip(rows.anchors.tolist(), rows.depths.tolist(), strict=True), range(99), strict=False))
    log_probs = torch.zeros(len(rows.labels))
    log_probs[[places[0, 0], places[0, 1], places[0, 2]]] = torch.tensor([0.5, 0.4, 0.25]).log()
    found = d_pace_weights(rows, log_probs, num_depths=3, smoothing=0)
    chain = [float(found[places[0, i]]) for i in range(3)]
    assert chain == pytest.approx([0.5 + 0.5 * 0.4 + 0.5 * 0.4 * 0.25, 0.5 * 0.4 + 0.5 * 0.4 * 0.25, 0.5 * 0.4 * 0.25])
    assert float(found[3]) == 0, "the last token predicts nothing"


def test_d_pace_with_all_smoothing_counts_what_comes_after():
    rows, _ = rows_of([pack_of([(range(5), [True] * 5)])], 3)
    found = d_pace_weights(rows, torch.full((len(rows.labels),), -9.0), num_depths=3, smoothing=1)
    of_first = found[(rows.anchors == 0) & (rows.labels != IGNORED)]
    assert of_first.tolist() == [3, 2, 1]
