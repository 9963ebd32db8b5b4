"""What is asked for, how far it has come, and what comes out.

B requests · T positions of one reading · K draft tokens · S tokens of the longest request that the engine takes
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_pard.errors import PardError
from vllm_pard.metrics import AcceptanceStats

Prompts = Sequence[Sequence[int]]


class GenerationError(PardError):
    """The request can't be generated."""


@dataclass(frozen=True)
class Generation:
    """New tokens, and how the drafts did."""

    token_ids: list[int]
    stats: AcceptanceStats


class Requests:
    """The requests of a batch, on the device. A finished one stays as it is."""

    def __init__(
        self,
        prompts: Prompts,
        *,
        batch_size: int,
        max_length: int,
        max_new_tokens: int,
        eos_token_ids: Sequence[int],
        device: torch.device,
    ) -> None:
        self._num_prompt_tokens = [len(prompt) for prompt in prompts]
        # A batch that is not full gets requests that are finished already.
        num_idle = batch_size - len(prompts)
        rows = [list(prompt) for prompt in prompts] + [[0]] * num_idle
        limits = [len(prompt) + max_new_tokens for prompt in prompts] + [1] * num_idle
        # The last column takes what is not kept.
        self.tokens = torch.tensor([row + [0] * (max_length + 1 - len(row)) for row in rows], device=device)  # [B, S+1]
        self.lengths = torch.tensor([len(row) for row in rows], device=device)  # [B]
        self.finished = self.lengths >= torch.tensor(limits, device=device)  # [B]
        self._limits = torch.tensor(limits, device=device)  # [B]
        self._eos_token_ids = torch.tensor(eos_token_ids, dtype=torch.long, device=device)
        self._counts: list[Tensor] = []  # [2, B] for each step

    def at(self, positions: Tensor) -> Tensor:
        """The tokens at positions [B, T]; where there is none, any. [B, T]"""
        return self.tokens.gather(1, positions.clamp(0, self.tokens.shape[1] - 1))

    def append(self, token_ids: Tensor, num_tokens: Tensor) -> None:
        """Keep the first num_tokens [B] of token_ids [B, K + 1], as far as the request goes."""
        index = torch.arange(token_ids.shape[1], device=token_ids.device)  # [K + 1]
        positions = self.lengths[:, None] + index  # [B, K + 1]
        is_end = torch.isin(token_ids, self._eos_token_ids)
        is_past_end = is_end.cumsum(dim=1) > is_end.int()
        is_kept = (index < num_tokens[:, None]) & (positions < self._limits[:, None])
        is_kept &= ~is_past_end & ~self.finished[:, None]
        self.tokens.scatter_(1, torch.where(is_kept, positions, self.tokens.shape[1] - 1), token_ids)
        self.lengths = self.lengths + is_kept.sum(dim=1)
        self.finished = self.finished | (self.lengths >= self._limits) | (is_kept & is_end).any(dim=1)

    def count(self, num_draft_tokens: Tensor, num_accepted: Tensor) -> None:
        """Record the drafts [B] of a step, but for requests that were finished before it."""
        self._counts.append(torch.stack([num_draft_tokens, num_accepted]) * ~self.finished)

    def generations(self) -> list[Generation]:
        tokens, lengths = self.tokens.tolist(), self.lengths.tolist()
        counts = torch.stack(self._counts).tolist()
        return [
            Generation(
                tokens[i][num_prompt_tokens : lengths[i]],
                # A step without a draft is no draft.
                sum((AcceptanceStats.of_draft(k[i], a[i]) for k, a in counts if k[i] > 0), start=AcceptanceStats()),
            )
            for i, num_prompt_tokens in enumerate(self._num_prompt_tokens)
        ]


def check_call(
    prompts: Prompts,
    *,
    max_new_tokens: int,
    temperature: float,
    max_length: int,
    context: int,
    vocab_size: int,
) -> None:
    """Raise GenerationError if a prompt can't be answered as asked."""
    if max_new_tokens < 1:
        raise GenerationError(f"max_new_tokens must be 1 or more; got {max_new_tokens}")
    if not 0 <= temperature < math.inf:
        raise GenerationError(f"temperature must be a number from 0 (greedy) up; got {temperature}")
    room, owner = min((context, "the target"), (max_length, "this engine (max_length)"))
    for prompt in prompts:
        if not prompt:
            raise GenerationError("a prompt needs at least one token; got none")
        if not all(0 <= token_id < vocab_size for token_id in prompt):
            raise GenerationError(f"prompt token ids must be from 0 to {vocab_size - 1}")
        if len(prompt) + max_new_tokens > room:
            raise GenerationError(
                f"{owner} has room for {room} tokens; {len(prompt)} prompt tokens and "
                f"{max_new_tokens} new ones are more: shorten the prompt or lower max_new_tokens"
            )
