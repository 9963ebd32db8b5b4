"""The k most likely tokens in place of a distribution: how near the KL divergence and its gradient stay."""

import pytest
import torch
from torch import Tensor

from vllm_pard.training import top_k as module
from vllm_pard.training.losses import forward_kl
from vllm_pard.training.row_losses import Head, chunks_of, row_losses
from vllm_pard.training.top_k import TopKHead, TopKOutput, top_k

U, V, H = 12, 3000, 16


@pytest.fixture
def head() -> Head:
    """A teacher as sure of itself as language models are: 16 of 3000 tokens have four fifths of the probability."""
    torch.manual_seed(0)
    return Head(torch.randn(U, H), torch.randn(V, H))


def kl_of(logits: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Divergences, and the gradient of their sum."""
    logits = logits.detach().requires_grad_()
    divergence = forward_kl(logits.log_softmax(dim=-1), teacher.log_softmax(dim=-1))
    return divergence.detach(), torch.autograd.grad(divergence.sum(), logits)[0]


def test_the_most_likely_and_their_log_probabilities(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 5 * V)  # three portions, the last one smaller
    ids, log_probs = top_k(head, 16)
    wanted = head.logits(slice(None)).log_softmax(dim=-1).topk(16)
    assert ids.dtype == torch.int32
    assert torch.equal(ids.long(), wanted.indices)
    torch.testing.assert_close(log_probs, wanted.values, rtol=0, atol=1e-5)


def test_with_all_tokens_nothing_is_lost(head: Head) -> None:
    ids, log_probs = top_k(head, V)
    found = TopKHead(ids.long(), log_probs).log_probs_beside(
        torch.randn(4, V).log_softmax(-1), slice(2, 8), torch.tensor([5, 0, 0, 3])
    )
    wanted = head.logits(slice(None)).log_softmax(dim=-1)[[7, 2, 2, 5]]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("noise", [0.5, 2.0], ids=["a near draft", "a far draft"])
def test_what_is_left_in_the_drafts_shape_is_nearer_than_evenly_or_not_at_all(head: Head, noise: float) -> None:
    teacher = head.logits(slice(None))
    draft, everything = teacher + noise * torch.randn(U, V), torch.arange(U)
    ids, log_probs = (each.long() if each.dtype == torch.int32 else each for each in top_k(head, 16))
    left = 1 - log_probs.exp().sum(dim=1, keepdim=True)
    assert 0.05 < left.mean() < 0.3
    full, full_gradient = kl_of(draft, teacher)
    kept = TopKHead(ids, log_probs).log_probs_beside(draft.log_softmax(-1), slice(0, U), everything)
    assert torch.allclose(kept.exp().sum(dim=1), torch.ones(U), atol=1e-5)
    evenly = (left / (V - 16)).log().expand(-1, V).scatter(1, ids, log_probs)
    never = torch.full((U, V), -1e4).scatter(1, ids, log_probs)
    (ours, gradient), *others = (kl_of(draft, each) for each in (kept, evenly, never))
    # k + 1 outcomes can only be nearer to each other than V.
    assert (ours <= full + 1e-5).all()
    assert torch.allclose(gradient.gather(1, ids), full_gradient.gather(1, ids), atol=1e-5)
    distance = (gradient - full_gradient).abs().sum()
    assert all(distance < 0.9 * (other - full_gradient).abs().sum() for _, other in others)


def test_a_draft_that_knows_no_other_token_gets_numbers(head: Head) -> None:
    ids, log_probs = top_k(head, 4)
    draft = torch.full((U, V), -1e4).scatter(1, ids.long(), 0.0)
    kept = TopKHead(ids.long(), log_probs).log_probs_beside(draft.log_softmax(-1), slice(0, U), torch.arange(U))
    assert torch.isfinite(kept).all()
    sure = TopKHead(ids.long()[:, :1], torch.zeros(U, 1)).log_probs_beside(
        torch.randn(U, V).log_softmax(-1), slice(0, U), torch.arange(U)
    )
    assert torch.isfinite(kl_of(torch.randn(U, V), sure)[0]).all()


@pytest.mark.parametrize("kind", ["kl", "tv", "lk"])
def test_it_is_a_teacher(head: Head, kind: str) -> None:
    """Over positions that not every token is, in several chunks."""
    ids, log_probs = top_k(head, V)
    positions = torch.tensor([1, 4, 5, 9])
    output = TopKOutput(torch.zeros(U, 0), torch.zeros(U), ids.long(), log_probs)
    rows = torch.tensor([0, 0, 1, 2, 2, 3])
    draft = Head(torch.randn(6, H, requires_grad=True), torch.randn(V, H))
    labels = torch.randint(V, (6,))
    losses = [
        row_losses(draft, labels, chunks_of(rows.tolist(), 2), teacher=teacher, teacher_rows=rows, kinds=(kind,))[kind]
        for teacher in (output.head(positions), Head(head.hidden[positions], head.weight))
    ]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
