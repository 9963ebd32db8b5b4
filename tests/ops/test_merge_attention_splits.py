"""Partial results of attention against the twin, in poisoned memory."""

import pytest
import torch
from pard_kernels import merge_attention_splits, reference, workspace

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAN = float("nan")
# Sums of a few weighted numbers in another order.
TOLERANCE = 1e-6


@pytest.mark.parametrize(("num_splits", "head_size"), [(2, 64), (5, 24), (17, 80), (128, 256)])
def test_merge(num_splits: int, head_size: int) -> None:
    """Splits that saw nothing hold poison, and one row has seen nothing at all."""
    partial = workspace(num_splits + 1, 7, 2, head_size, DEVICE)
    partial.output.normal_()
    partial.log_sum_exp.normal_(std=100)  # most exponentials overflow
    unseen = torch.rand(num_splits + 1, 7, 2, device=DEVICE) < 0.4
    unseen[:, 2] = True
    partial.output[unseen], partial.log_sum_exp[unseen] = NAN, -torch.inf
    partial.log_sum_exp[num_splits] = NAN
    starts = torch.tensor([0, 2, 5], dtype=torch.int32, device=DEVICE)
    results = []
    for merge in (merge_attention_splits, reference.merge_attention_splits):
        results.append(torch.full((6, 3, head_size), NAN, device=DEVICE)[:, :2])
        merge(*partial, num_splits, starts, results[-1])
    torch.testing.assert_close(results[0], results[1], rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    assert results[0][:5].isfinite().all()
    assert (results[0][2] == 0).all()
    assert results[0][5].isnan().all(), "rows of no request are not written"


def test_parts_make_the_whole() -> None:
    """Weights of one softmax, cut at random into splits."""
    scores, values = 20 * torch.randn(40), torch.randn(40, 16)
    parts = torch.randint(0, 4, (40,))
    partial = workspace(4, 1, 1, 16, DEVICE)
    for split in range(4):
        own = scores[parts == split]
        partial.output[split, 0, 0] = own.softmax(0) @ values[parts == split]
        partial.log_sum_exp[split] = own.logsumexp(0) / torch.tensor(2.0).log()
    out = torch.empty(1, 1, 16, device=DEVICE)
    merge_attention_splits(*partial, 4, torch.tensor([0, 1], dtype=torch.int32, device=DEVICE), out)
    torch.testing.assert_close(out[0, 0].cpu(), scores.softmax(0) @ values, rtol=1e-5, atol=1e-5)


def test_a_small_workspace_is_refused() -> None:
    partial = workspace(2, 3, 1, 16, DEVICE)
    starts = torch.tensor([0, 3], dtype=torch.int32, device=DEVICE)
    with pytest.raises(ValueError, match=r"partial must hold \(3, 3, 1, 16\) or more splits and rows"):
        merge_attention_splits(*partial, 3, starts, torch.empty(3, 1, 16, device=DEVICE))
