"""The best tokens of B x K hidden states: a draft's lm_head, which reads each weight once and writes no logits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pard_kernels import lm_head_top_k, merge_top_k, reference

HAS_GPU = torch.cuda.is_available()
# Hidden size and vocabulary of Llama-3.2-1B; without a GPU the interpreter only checks, on sizes it can take.
HIDDEN_SIZE, VOCAB_SIZE = (2048, 128256) if HAS_GPU else (128, 300)
NUM_ROWS = (8, 32, 64, 256) if HAS_GPU else (8, 40)
# Ids are equal or wrong, and this is less than 1 of any of them; log-sum-exps are near 150.
TOLERANCE = 1e-6


def whole(*shape: int) -> torch.Tensor:
    """Small whole numbers: logits are exact in any order of summation. The interpreter has no products of bfloat16."""
    return torch.randint(-1, 2, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(0)).to(torch.float16)


@pytest.mark.parametrize("num_rows", NUM_ROWS)
@pytest.mark.parametrize("k", [1, 8])
def test_lm_head_top_k(k: int, num_rows: int, measure: Callable[..., None]) -> None:
    weight = whole(VOCAB_SIZE, HIDDEN_SIZE)
    hidden = weight[:num_rows].flip(1)
    measure(
        lm_head_top_k,
        reference.lm_head_top_k,
        lambda: {"hidden": hidden, "weight": weight, "k": k},
        num_bytes=weight.nbytes + hidden.nbytes,
        tolerance=TOLERANCE,
    )


@pytest.mark.parametrize(("num_parts", "k"), [(8, 1), (8, 8), (264, 1), (264, 8)])
def test_merge_top_k(num_parts: int, k: int, measure: Callable[..., None]) -> None:
    """Eight ranks, and the splits of one launch on 132 multiprocessors."""
    num_rows = 64 if HAS_GPU else 4
    generator = torch.Generator().manual_seed(0)
    inputs: dict[str, Any] = {
        "ids": torch.randperm(num_parts * num_rows * k, generator=generator).view(num_parts, num_rows, k),
        "logits": torch.randn(num_parts, num_rows, k, generator=generator),
        "log_sum_exps": torch.randn(num_parts, num_rows, generator=generator),
    }
    num_bytes = sum(tensor.nbytes for tensor in inputs.values())
    measure(merge_top_k, reference.merge_top_k, lambda: dict(inputs), num_bytes=num_bytes, tolerance=TOLERANCE)
