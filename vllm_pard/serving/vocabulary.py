"""One tokenizer family, two vocabulary sizes: padded embeddings differ (151936 / 152064), the tokens do not."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

# Low enough that no softmax notices it, finite so that no block of padding turns into NaN, and inside fp16.
NEVER = -1e4


def fit_logits(logits: Tensor, target_vocab_size: int) -> Tensor:
    """Cut or pad draft logits to the target's vocabulary. [N, V_draft] -> [N, V_target]

    Cut columns are ids that the target does not know, so they are never proposed; padded columns are ids that the
    draft does not know, at a probability of zero in any precision.
    """
    missing = target_vocab_size - logits.shape[-1]
    if missing <= 0:
        return logits[..., :target_vocab_size].contiguous() if missing else logits
    return nn.functional.pad(logits, (0, missing), value=NEVER)


def use_target_vocabulary(draft: nn.Module, draft_vocab_size: int, target_vocab_size: int) -> None:
    """Make `draft.compute_logits` answer in the target's vocabulary; equal sizes change nothing."""
    if draft_vocab_size == target_vocab_size:
        return
    compute_logits = cast(Callable[[Tensor], Tensor | None], draft.compute_logits)

    def compute_target_logits(hidden_states: torch.Tensor) -> Tensor | None:
        logits = compute_logits(hidden_states)
        return None if logits is None else fit_logits(logits, target_vocab_size)

    object.__setattr__(draft, "compute_logits", compute_target_logits)
