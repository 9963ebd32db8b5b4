"""One tokenizer family, two vocabularies: a draft whose padded size differs from the target's, or a trimmed draft.

Padded embeddings differ within a family (151936 / 152064), the tokens do not. A trimmed draft proposes frequent tokens
only. Either way a draft answers in the target's vocabulary, so that verification never knows.
"""

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from vllm_pard.config import ConfigError
from vllm_pard.draft_vocab_file import read_draft_vocab

# Low enough that no softmax notices it, finite so that no block of padding turns into NaN, and inside fp16.
NEVER = -1e4


def draft_token_ids(path: str | None, device: torch.device) -> Tensor | None:
    """The token ids of a trimmed draft, [any] int64; None: it drafts all."""
    return None if path is None else torch.tensor(read_draft_vocab(path), device=device)


def fit_logits(logits: Tensor, target_vocab_size: int) -> Tensor:
    """Cut or pad draft logits to the target's vocabulary. [N, V_draft] -> [N, V_target]

    Cut columns are ids that the target does not know, so they are never proposed; padded columns are ids that the
    draft does not know, at a probability of zero in any precision.
    """
    missing = target_vocab_size - logits.shape[-1]
    if missing <= 0:
        return logits[..., :target_vocab_size].contiguous() if missing else logits
    return nn.functional.pad(logits, (0, missing), value=NEVER)


def use_target_vocabulary(
    draft: nn.Module,
    draft_vocab_size: int,
    target_vocab_size: int,
    token_ids: Tensor | None = None,  # [any] int64, of a trimmed vocabulary
) -> None:
    """Make `draft.compute_logits` answer in the target's vocabulary; equal sizes change nothing."""
    if token_ids is not None:
        compute_target_logits = _trimmed_logits(draft, token_ids, target_vocab_size)
    elif draft_vocab_size != target_vocab_size:
        compute_target_logits = _fitted_logits(draft, target_vocab_size)
    else:
        return
    object.__setattr__(draft, "compute_logits", compute_target_logits)


def _fitted_logits(draft: nn.Module, target_vocab_size: int) -> Callable[[Tensor], Tensor | None]:
    compute_logits = cast(Callable[[Tensor], Tensor | None], draft.compute_logits)

    def compute_target_logits(hidden_states: Tensor) -> Tensor | None:
        logits = compute_logits(hidden_states)
        return None if logits is None else fit_logits(logits, target_vocab_size)

    return compute_target_logits


def _trimmed_logits(draft: Any, token_ids: Tensor, target_vocab_size: int) -> Callable[[Tensor], Tensor | None]:
    """Logits from the rows `token_ids` of a whole lm_head; every other token gets NEVER."""
    if draft.lm_head.tp_size > 1:
        raise ConfigError(
            '"draft_vocab" under tensor parallelism needs a plain lm_head and greedy drafts: leave "draft_vocab" out'
        )
    weight, bias = draft.lm_head.weight[token_ids], getattr(draft.lm_head, "bias", None)
    bias = None if bias is None else bias[token_ids]
    processor = copy.copy(draft.logits_processor)
    processor.logits_as_input = True

    def compute_target_logits(hidden_states: Tensor) -> Tensor:
        some = processor(None, nn.functional.linear(hidden_states, weight, bias))
        logits = torch.full((len(some), target_vocab_size), NEVER, dtype=some.dtype, device=some.device)
        return logits.index_copy_(1, token_ids, some)

    return compute_target_logits


def in_target_vocabulary(draft_logits: Tensor, vocab_size: int) -> Tensor:
    """Memory for logits of a draft [..., any] over the target's tokens, where it has another number of them."""
    if draft_logits.shape[-1] == vocab_size:
        return draft_logits
    return draft_logits.new_full((*draft_logits.shape[:-1], vocab_size), NEVER)
