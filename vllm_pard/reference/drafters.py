"""Ways of drafting. Each gives K tokens a request, and the distributions that it drew them from.

B requests · K draft tokens · V vocabulary of the target · H hidden size of the draft
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from vllm_pard.reference.cache import CachedModel
from vllm_pard.reference.features import Features
from vllm_pard.reference.requests import GenerationError, Requests
from vllm_pard.reference.sampling import Sampler

Method = Literal["ar", "ar+", "vsd", "pard", "pard2"]


class Drafts(NamedTuple):
    """What is proposed in one step."""

    token_ids: Tensor  # [B, K]
    probs: Tensor  # [B, K, V]


Drafter = Callable[[Requests, Sampler], Drafts]


def check_method(
    method: Method, *, has_draft: bool, has_target_proj: bool, num_speculative_tokens: int, compiled: bool
) -> None:
    """Raise GenerationError if there is no such method, or something that it needs is not there."""
    if method not in get_args(Method):
        raise GenerationError(f"method must be one of {', '.join(get_args(Method))}; got {method!r}")
    if has_target_proj and method != "pard2":
        raise GenerationError(f"target_proj is for method 'pard2'; got {method!r}")
    if method == "ar" and compiled:
        raise GenerationError("method 'ar' is never compiled: leave `compiled` out, or use 'ar+'")
    if method in ("ar", "ar+"):
        return
    if not has_draft:
        raise GenerationError(f"method {method!r} needs a draft model, and none was given")
    if num_speculative_tokens < 1:
        raise GenerationError(f"num_speculative_tokens must be 1 or more; got {num_speculative_tokens}")


def make_drafter(
    draft: CachedModel | None,
    *,
    method: Method,
    num_speculative_tokens: int,
    mask_token_id: int | None,
    vocab_size: int,
    features: Features | None,
) -> Drafter:
    """Bind what `method` needs: the one place to add another way of drafting."""
    if draft is None:
        return lambda requests, sampler: draft_nothing(requests, vocab_size)
    if method == "vsd":
        return lambda requests, sampler: draft_one_by_one(draft, requests, sampler, num_speculative_tokens, vocab_size)
    if mask_token_id is None or not 0 <= mask_token_id < draft.vocab_size:
        raise GenerationError(
            f"method {method!r} needs a mask_token_id from 0 to {draft.vocab_size - 1}; got {mask_token_id!r}: "
            'it is "pard_token" in the config.json of the draft'
        )
    return lambda requests, sampler: draft_in_parallel(
        draft, requests, sampler, num_speculative_tokens, mask_token_id, vocab_size, features
    )


def draft_in_parallel(
    draft: CachedModel,
    requests: Requests,
    sampler: Sampler,
    num_speculative_tokens: int,
    mask_token_id: int,
    vocab_size: int,
    features: Features | None,
) -> Drafts:
    """PARD: all K draft tokens in one forward. PARD-2: the same, with features of the target if dependent."""
    logits = parallel_logits(draft, requests, num_speculative_tokens, mask_token_id, features)
    probs = sampler.probs(logits[..., :vocab_size])
    return Drafts(sampler.sample(probs), fill_up(probs, vocab_size))


def parallel_logits(
    draft: CachedModel,
    requests: Requests,
    num_speculative_tokens: int,
    mask_token_id: int,
    features: Features | None = None,
) -> Tensor:
    """One forward over the newest K + 1 tokens, then K - 1 mask tokens. [B, K, V of the draft]

    The row of the newest token gives the first draft token, each mask token's row one more. A step keeps at most K + 1
    tokens, which the draft has read as mask tokens or not at all; if it kept fewer, older ones are read once more.
    """
    newest = torch.arange(-num_speculative_tokens - 1, num_speculative_tokens - 1, device=requests.lengths.device)
    positions = requests.lengths[:, None] + newest  # [B, 2K]
    token_ids = requests.at(positions).masked_fill(newest >= 0, mask_token_id)
    added = None if features is None else features.at(positions, requests.lengths[:, None] - 1)  # [B, 2K, H]
    return draft.step(token_ids, positions, num_logits=num_speculative_tokens, added=added)


def draft_one_by_one(
    draft: CachedModel, requests: Requests, sampler: Sampler, num_speculative_tokens: int, vocab_size: int
) -> Drafts:
    """VSD: K forwards, each with the token of the one before.

    The first has two rows: after a draft that was accepted to its end, its last token is still to be read.
    """
    positions = requests.lengths[:, None] + torch.arange(-2, 0, device=requests.lengths.device)  # [B, 2]
    token_ids = requests.at(positions)
    drafts = []
    for _ in range(num_speculative_tokens):
        probs = sampler.probs(draft.step(token_ids, positions, num_logits=1)[..., :vocab_size])  # [B, 1, V]
        token_ids, positions = sampler.sample(probs), positions[:, -1:] + 1  # [B, 1]
        drafts.append(Drafts(token_ids, fill_up(probs, vocab_size)))
    return Drafts(*(torch.cat(parts, dim=1) for parts in zip(*drafts, strict=True)))


def draft_nothing(requests: Requests, vocab_size: int) -> Drafts:
    probs = torch.empty(len(requests.tokens), 0, vocab_size, device=requests.tokens.device)
    return Drafts(requests.tokens[:, :0], probs)


def fill_up(probs: Tensor, vocab_size: int) -> Tensor:
    """Tokens that the draft does not know have probability 0."""
    return F.pad(probs, (0, vocab_size - probs.shape[-1]))
