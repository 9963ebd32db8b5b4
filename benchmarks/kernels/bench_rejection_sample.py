"""Linear verification: vLLM's own kernels, which PARD uses. They read each logit and write no probability.

The best logit leads by a hundred times the temperature, so that there is one right answer, sampled or not.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

HAS_GPU = torch.cuda.is_available()
NUM_DRAFTS, VOCAB_SIZE = (15, 128256) if HAS_GPU else (4, 300)
METHODS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0, "has_draft_logits": False, "is_block": False},
    "sampled, one-hot drafts": {"temperature": 0.01, "has_draft_logits": False, "is_block": False},
    "sampled, draft probabilities": {"temperature": 0.01, "has_draft_logits": True, "is_block": False},
    "block verification": {"temperature": 0.01, "has_draft_logits": True, "is_block": True},
}


def inputs(batch_size: int, *, temperature: float, has_draft_logits: bool, is_block: bool) -> dict[str, Any]:
    """Requests whose drafts are right up to another position each. vLLM has divided the target's logits already."""
    generator = torch.Generator().manual_seed(0)
    rows = NUM_DRAFTS + 1
    logits = torch.randint(-8, 0, (batch_size * rows, VOCAB_SIZE), dtype=torch.int8, generator=generator).float()
    best = torch.randint(0, VOCAB_SIZE, (batch_size, rows), generator=generator)
    logits.scatter_(1, best.flatten()[:, None], 0.0)
    drafts = best[:, :NUM_DRAFTS].clone()
    wrong = torch.arange(batch_size) % rows  # the first wrong draft; none if it is beyond the last
    drafts += (torch.arange(NUM_DRAFTS)[None] == wrong[:, None]).long()
    draft_logits = torch.full((batch_size, NUM_DRAFTS, VOCAB_SIZE), -8.0)
    draft_logits.scatter_(2, (drafts % VOCAB_SIZE)[..., None], 0.0)
    first = torch.zeros(batch_size, 1, dtype=torch.long)  # the token before the drafts
    return {
        "target_logits": logits / (temperature or 1.0),
        "draft_logits": draft_logits if has_draft_logits else None,
        "draft_sampled": torch.cat([first, drafts % VOCAB_SIZE], 1).flatten(),
        "cu_num_logits": torch.arange(batch_size + 1, dtype=torch.int32) * rows,
        "pos": torch.arange(rows).repeat(batch_size) + 50,
        "idx_mapping": torch.arange(batch_size),
        "expanded_idx_mapping": torch.arange(batch_size).repeat_interleave(rows),
        "expanded_local_pos": torch.arange(rows, dtype=torch.int32).repeat(batch_size),
        "temperature": torch.full((batch_size,), temperature),
        "seed": torch.arange(batch_size),
        "num_speculative_steps": NUM_DRAFTS,
        "use_block_verification": is_block,
    }


def verify(**arguments: Any) -> Tensor:
    """vLLM's verification. Returns accepted drafts and the target's own token, then -1. [B, K + 1]"""
    from vllm.v1.worker.gpu.spec_decode.rejection_sampler_utils import rejection_sample

    sampled, num_sampled = rejection_sample(**arguments)
    return _ended(sampled, num_sampled)


def twin(*, target_logits: Tensor, draft_sampled: Tensor, **_: Any) -> Tensor:
    """The same from arg-maxima: a draft is kept if it and all before it are the target's own."""
    best = target_logits.argmax(1).view(-1, NUM_DRAFTS + 1)
    is_right = draft_sampled.view(-1, NUM_DRAFTS + 1)[:, 1:] == best[:, :-1]
    num_sampled = 1 + is_right.long().cumprod(1).sum(1)
    return _ended(best, num_sampled)


def _ended(tokens: Tensor, num_sampled: Tensor) -> Tensor:
    return tokens.masked_fill(torch.arange(NUM_DRAFTS + 1, device=tokens.device) >= num_sampled[:, None], -1)


@pytest.mark.skipif(not HAS_GPU, reason="vLLM's kernels need a GPU")
@pytest.mark.parametrize("batch_size", [1, 16, 64])
@pytest.mark.parametrize("method", METHODS)
def test_rejection_sample(method: str, batch_size: int, measure: Callable[..., None]) -> None:
    pytest.importorskip("vllm")
    arguments = inputs(batch_size, **METHODS[method])
    num_bytes = sum(a.nbytes for a in (arguments["target_logits"], arguments["draft_logits"]) if a is not None)
    measure(verify, twin, lambda: dict(arguments), num_bytes=num_bytes)
