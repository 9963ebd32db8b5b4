"""Chunks change nothing but memory: same values, same gradients, no tensor of all rows by all words."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cod_batches import random_pack
from torch.utils._python_dispatch import TorchDispatchMode

from vllm_pard.training.cod.collator import Collator
from vllm_pard.training.losses import cross_entropy, forward_kl
from vllm_pard.training.options.config import CodConfig
from vllm_pard.training.row_losses import DISTILLATION, Chunk, Head, chunks_of, predictions, row_losses

V, H, TEACHER_H = 40, 8, 12
KINDS = ("ce", *DISTILLATION)
SUM_TOL = {"atol": 1e-5, "rtol": 1e-5}  # fp32 sums of a hundred terms in another order


class Case:
    """Labelled rows of a batch with long prompts between short answers, so that few tokens are predicted from."""

    def __init__(self, *, bias=False, lengths=(60, 3, 60)):
        generator = torch.Generator().manual_seed(0)

        def random(*shape):
            return torch.randn(*shape, generator=generator)

        pack = random_pack(lengths, vocab_size=V)
        pack["is_trained"] &= torch.arange(sum(lengths)) % 20 > 12
        batch = Collator(cod=CodConfig(num_depths=4, retention=1, min_retention=1), seed=0, vocab_size=V)([pack])
        self.labels, self.teacher_rows = batch["labels"], batch["teacher_rows"]
        self.num_tokens, self.num_positions = sum(lengths), len(batch["positions"])
        self.draft = Head(random(len(self.labels), H), random(V, H), random(V) if bias else None)
        self.teacher = Head(random(self.num_positions, TEACHER_H), random(V, TEACHER_H))

    def chunks(self, size):
        return chunks_of(self.teacher_rows.tolist(), size)

    def run(self, size, kinds=KINDS, teacher=True):
        """(losses, gradients of a weighted sum of all of them)"""
        draft = Head(*(None if t is None else t.clone().requires_grad_() for t in vars(self.draft).values()))
        losses = row_losses(
            draft,
            self.labels,
            self.chunks(size),
            teacher=self.teacher if teacher else None,
            teacher_rows=self.teacher_rows,
            kinds=kinds,
        )
        weights = torch.linspace(0.2, 1.7, len(self.labels))
        sum(scale * (weights * loss).sum() for scale, loss in enumerate(losses.values(), 1)).backward()
        return losses, [t.grad for t in vars(draft).values() if t is not None]


@pytest.fixture(scope="module")
def case():
    return Case()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [1, 7, 32])
def test_chunks_give_the_losses_and_the_gradients_of_one(size, bias):
    case = Case(bias=bias)
    (losses, gradients), (whole, whole_gradients) = case.run(size), case.run(10**6)
    assert list(losses) == list(KINDS)
    assert len(case.chunks(size)) > 1
    for kind in KINDS:
        assert losses[kind].dtype == torch.float32
        torch.testing.assert_close(losses[kind], whole[kind], **SUM_TOL)
    for found, wanted in zip(gradients, whole_gradients, strict=True):
        torch.testing.assert_close(found, wanted, **SUM_TOL)
        assert wanted.abs().max() > 0.1


@pytest.mark.parametrize("kinds", [("ce",), ("kl",), ("ce", "tv"), ("lk", "ce")])
def test_only_the_kinds_that_are_asked_for(case, kinds):
    losses, _ = case.run(7, kinds)
    assert set(losses) == {"ce", *kinds}, "cross-entropy is always told, for the weights and the log"
    log_probs = case.draft.logits(slice(None)).log_softmax(-1)
    target_log_probs = case.teacher.logits(slice(None)).log_softmax(-1)[case.teacher_rows]
    torch.testing.assert_close(losses["ce"], cross_entropy(log_probs, case.labels), **SUM_TOL)
    if "kl" in kinds:
        torch.testing.assert_close(losses["kl"], forward_kl(log_probs, target_log_probs), **SUM_TOL)


def test_half_precision_gives_float32_losses(case):
    """Of the logits as they are: nothing else is rounded."""
    half = Case()
    half.draft, half.teacher = (Head(h.hidden.bfloat16(), h.weight.bfloat16()) for h in (half.draft, half.teacher))
    losses, gradients = half.run(7)
    log_probs = half.draft.logits(slice(None)).float().log_softmax(-1)
    target_log_probs = half.teacher.logits(slice(None)).float().log_softmax(-1)[half.teacher_rows]
    wanted = {"ce": cross_entropy(log_probs, half.labels)}
    wanted |= {kind: loss(log_probs, target_log_probs) for kind, loss in DISTILLATION.items()}
    for kind in KINDS:
        assert losses[kind].dtype == torch.float32
        torch.testing.assert_close(losses[kind], wanted[kind], **SUM_TOL)
    assert {gradient.dtype for gradient in gradients} == {torch.bfloat16}


def test_the_teacher_is_not_needed_for_cross_entropy(case):
    assert set(case.run(7, ("ce",), teacher=False)[0]) == {"ce"}


class Largest(TorchDispatchMode):
    """The most elements that any operation returns."""

    def __init__(self):
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.num_elements = max(self.num_elements, tensor.numel())
        return result


def largest(case, size):
    with Largest() as mode:
        case.run(size)
    return mode.num_elements


def test_no_tensor_has_all_rows_or_all_positions_by_all_words(case):
    """Forward and backward. What is as large as a chunk's logits is a chunk's logits, or the weights."""
    size = 8
    num_labels = len(case.labels)
    assert num_labels > 8 * size
    assert case.num_positions > 2 * size
    allowed = max(size * V, V * H, V * TEACHER_H, num_labels * H, case.num_positions * TEACHER_H)
    assert largest(case, size) <= allowed < case.num_positions * V
    assert largest(case, num_labels) == num_labels * V, "the control: one chunk of all"


def num_saved(case, size):
    """Elements that wait for the way back."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()) or tensor, lambda t: t):
        draft = replace(case.draft, hidden=case.draft.hidden.clone().requires_grad_())
        row_losses(
            draft, case.labels, case.chunks(size), teacher=case.teacher, teacher_rows=case.teacher_rows, kinds=KINDS
        )
    return sum(saved)


def test_the_chunks_logits_do_not_wait_for_the_way_back(case):
    assert num_saved(case, 8) < len(case.labels) * V / 4
    assert num_saved(case, len(case.labels)) > len(case.labels) * V, "the control: one chunk, computed once"


def test_a_chunk_never_has_more_teacher_rows_than_rows(case):
    """Long prompts lie between the answers; nothing of the target is computed there."""
    assert case.num_tokens > 1.5 * case.num_positions
    for size in (1, 7, 32):
        assert all(chunk.last - chunk.first <= chunk.stop - chunk.start for chunk in case.chunks(size))


def test_the_teacher_is_computed_once_for_each_position(monkeypatch, case):
    """A position whose rows lie in two chunks is computed for both."""
    num_rows = 0
    teacher = replace(case.teacher)
    logits = Head.logits

    def counted(head, rows):
        nonlocal num_rows
        result = logits(head, rows)
        num_rows += len(result) if head is teacher else 0
        return result

    monkeypatch.setattr(Head, "logits", counted)
    size = 32
    with torch.no_grad():
        row_losses(
            case.draft, case.labels, case.chunks(size), teacher=teacher, teacher_rows=case.teacher_rows, kinds=KINDS
        )
    assert case.num_positions <= num_rows <= case.num_positions + len(case.chunks(size)) - 1
    assert num_rows < len(case.labels) / 2


def test_chunks_by_hand():
    assert chunks_of([0, 0, 1, 1, 1, 2, 3], 3) == [Chunk(0, 3, 0, 2), Chunk(3, 6, 1, 3), Chunk(6, 7, 3, 4)]
    assert chunks_of([], 3) == [Chunk(0, 0, 0, 0)]


@pytest.mark.parametrize("bias", [False, True])
def test_a_batch_without_a_label_has_no_loss_but_gradients(bias):
    """In every tensor: other processes wait for them."""
    case = Case(bias=bias, lengths=(1,))
    assert len(case.labels) == 0
    losses, gradients = case.run(16)
    assert [loss.shape for loss in losses.values()] == [(0,)] * 4
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("size", [1, 16, 10**6])
def test_predictions_are_the_most_likely_ids(case, size):
    with torch.no_grad():
        found = predictions(case.draft, case.chunks(size))
    assert found.dtype == torch.int64
    assert torch.equal(found, (case.draft.hidden @ case.draft.weight.T).argmax(-1))


def test_predictions_of_no_row():
    assert predictions(Case(lengths=(1,)).draft, chunks_of([], 4)).shape == (0,)
