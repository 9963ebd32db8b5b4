"""Greedy decoding in three ways: plain (AR), with an autoregressive draft (VSD), with a parallel draft (PARD).

One request, clear before fast: what a step of PARD (arXiv 2504.18583) is, and the oracle for the vLLM plugin.
The target alone decides the tokens, so all three ways give the same ones.
"""

# K draft tokens · V vocabulary

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vllm_pard.errors import PardError
from vllm_pard.metrics import AcceptanceStats
from vllm_pard.reference.cache import CachedModel

Method = Literal["ar", "vsd", "pard"]
# tokens so far, number of draft tokens -> draft tokens
Drafter = Callable[[Sequence[int], int], list[int]]


class GenerationError(PardError):
    """The request can't be generated."""


@dataclass(frozen=True)
class Generation:
    """New tokens, and how the drafts did."""

    token_ids: list[int]
    stats: AcceptanceStats


@torch.inference_mode()
def generate(
    target: PreTrainedModel,
    draft: PreTrainedModel | None,
    prompt_ids: list[int],
    *,
    method: Method,
    num_speculative_tokens: int,
    max_new_tokens: int,
    mask_token_id: int | None = None,
    eos_token_ids: Sequence[int] = (),
) -> Generation:
    """Continue `prompt_ids` with the target's most likely tokens, up to and with the first end-of-sequence token."""
    cached_target = CachedModel(target)
    cached_draft = None if draft is None or method == "ar" else CachedModel(draft)
    check_request(cached_target, prompt_ids, max_new_tokens)
    draft_tokens = make_drafter(
        cached_draft,
        method=method,
        num_speculative_tokens=num_speculative_tokens,
        mask_token_id=mask_token_id,
        vocab_size=cached_target.vocab_size,
    )
    cached = [cached_target] if cached_draft is None else [cached_target, cached_draft]
    max_length = min(model.max_length for model in cached)

    tokens = list(prompt_ids)
    stats = AcceptanceStats()
    prefill(cached, tokens)
    while (end := find_end(tokens, len(prompt_ids), max_new_tokens, eos_token_ids)) is None:
        # Past the context of either model there is no position for a draft token: plain steps from there.
        num_draft_tokens = min(num_speculative_tokens, max_length - len(tokens))
        draft_ids = draft_tokens(tokens, num_draft_tokens) if num_draft_tokens > 0 else []
        target_logits = score(cached_target, tokens, draft_ids)
        num_accepted, bonus_id = verify(draft_ids, target_logits)
        tokens = commit(cached, tokens, [*draft_ids[:num_accepted], bonus_id])
        if draft_ids:
            stats += AcceptanceStats.of_draft(len(draft_ids), num_accepted)
    return Generation(tokens[len(prompt_ids) : end], stats)


def prefill(models: Sequence[CachedModel], prompt_ids: Sequence[int]) -> None:
    """Cache the whole prompt but its newest token, which the first step reads.

    A draft whose context is shorter than the prompt stays empty; it will not be asked.
    """
    for model in models:
        if 1 < len(prompt_ids) <= model.max_length:
            model.forward(prompt_ids[:-1], num_logits=1)


def make_drafter(
    draft: CachedModel | None,
    *,
    method: Method,
    num_speculative_tokens: int,
    mask_token_id: int | None,
    vocab_size: int,
) -> Drafter:
    """Check what `method` needs, and bind it: the one place to add another way of drafting."""
    if method not in get_args(Method):
        raise GenerationError(f"method must be one of {', '.join(get_args(Method))}; got {method!r}")
    if method == "ar":
        return lambda tokens, num_draft_tokens: []
    if draft is None:
        raise GenerationError(f"method {method!r} needs a draft model, and none was given")
    if num_speculative_tokens < 1:
        raise GenerationError(f"num_speculative_tokens must be 1 or more; got {num_speculative_tokens}")
    if method == "vsd":
        return lambda tokens, num_draft_tokens: draft_one_by_one(draft, tokens, num_draft_tokens, vocab_size)
    if mask_token_id is None or not 0 <= mask_token_id < draft.vocab_size:
        raise GenerationError(
            f"method 'pard' needs a mask_token_id from 0 to {draft.vocab_size - 1}; got {mask_token_id!r}: "
            'it is "pard_token" in the config.json of the draft'
        )
    return lambda tokens, num_draft_tokens: draft_in_parallel(
        draft, tokens, num_draft_tokens, mask_token_id, vocab_size
    )


def draft_in_parallel(
    draft: CachedModel, tokens: Sequence[int], num_draft_tokens: int, mask_token_id: int, vocab_size: int
) -> list[int]:
    """PARD: all K draft tokens in one forward."""
    logits = parallel_logits(draft, tokens, num_draft_tokens, mask_token_id)  # [K, V]
    return most_likely(logits[:, :vocab_size])


def parallel_logits(draft: CachedModel, tokens: Sequence[int], num_draft_tokens: int, mask_token_id: int) -> Tensor:
    """One forward over the kept tokens that the draft has not seen, then K - 1 mask tokens. [K, V]

    The row of the newest kept token gives the first draft token, each mask token's row one more. The keys and values
    of mask tokens are never those of the token that takes the place, so they always go, accepted or not.
    """
    num_masks = num_draft_tokens - 1
    pending = tokens[draft.num_cached :]
    logits = draft.forward([*pending, *[mask_token_id] * num_masks], num_logits=num_draft_tokens)
    draft.roll_back(num_masks)
    return logits


def draft_one_by_one(draft: CachedModel, tokens: Sequence[int], num_draft_tokens: int, vocab_size: int) -> list[int]:
    """VSD: K forwards, each with the token of the one before."""
    draft_ids: list[int] = []
    for _ in range(num_draft_tokens):
        pending = [*tokens, *draft_ids][draft.num_cached :]
        logits = draft.forward(pending, num_logits=1)  # [1, V]
        draft_ids += most_likely(logits[:, :vocab_size])
    return draft_ids


def score(target: CachedModel, tokens: Sequence[int], draft_ids: Sequence[int]) -> Tensor:
    """One target forward over the newest token and the draft tokens. [K + 1, V]"""
    pending = tokens[target.num_cached :]
    return target.forward([*pending, *draft_ids], num_logits=len(draft_ids) + 1)


def verify(draft_ids: Sequence[int], target_logits: Tensor) -> tuple[int, int]:
    """How many draft tokens are the target's own choice, and the bonus token that follows them."""
    target_ids = most_likely(target_logits)
    num_accepted = 0
    while num_accepted < len(draft_ids) and draft_ids[num_accepted] == target_ids[num_accepted]:
        num_accepted += 1
    return num_accepted, target_ids[num_accepted]


def commit(models: Sequence[CachedModel], tokens: list[int], kept_ids: Sequence[int]) -> list[int]:
    """Append the kept tokens and forget the rows of rejected ones; nobody has read the bonus token yet."""
    tokens = [*tokens, *kept_ids]
    for model in models:
        model.truncate(len(tokens) - 1)
    return tokens


def find_end(tokens: Sequence[int], num_prompt: int, max_new_tokens: int, eos_token_ids: Sequence[int]) -> int | None:
    """Where the output ends in `tokens`, or None while it goes on. Kept tokens past an end-of-sequence are cut."""
    limit = num_prompt + max_new_tokens
    for i, token_id in enumerate(tokens[num_prompt:limit], start=num_prompt):
        if token_id in eos_token_ids:
            return i + 1
    return limit if len(tokens) >= limit else None


def most_likely(logits: Tensor) -> list[int]:
    """[T, V] -> T token ids"""
    token_ids: list[int] = logits.argmax(dim=-1).tolist()
    return token_ids


def check_request(target: CachedModel, prompt_ids: Sequence[int], max_new_tokens: int) -> None:
    if not prompt_ids:
        raise GenerationError("a prompt needs at least one token; got none")
    if not all(0 <= token_id < target.vocab_size for token_id in prompt_ids):
        raise GenerationError(f"prompt token ids must be from 0 to {target.vocab_size - 1}")
    if max_new_tokens < 1:
        raise GenerationError(f"max_new_tokens must be 1 or more; got {max_new_tokens}")
    if len(prompt_ids) + max_new_tokens > target.max_length:
        raise GenerationError(
            f"the target has room for {target.max_length} tokens; {len(prompt_ids)} prompt tokens and "
            f"{max_new_tokens} new ones are more: shorten the prompt or lower max_new_tokens"
        )
