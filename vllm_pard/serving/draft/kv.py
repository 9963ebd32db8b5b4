"""What the draft's K/V cache holds, and so what a step still has to read.

B requests of a step · R request slots · K draft tokens
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.utils.torch_utils import async_tensor_h2d

IntArray = NDArray[np.signedinteger[Any]]
BoolArray = NDArray[np.bool_]

NOT_IN_A_PROMPT = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRequests:
    """A step's requests as the host knows them; under asynchronous scheduling that is before the last verdicts."""

    slots: IntArray  # [B]
    query_lens: IntArray  # [B], tokens that the target reads and may keep, its drafts included
    num_computed: IntArray  # [B], exact for a request in its prefill, else at least what the target has
    is_prefill: BoolArray  # [B]
    will_sample: BoolArray  # [B], all but unfinished prefills

    @classmethod
    def of(cls, batch: Any, max_num_kept: int) -> "StepRequests":
        """Of a runner's InputBatch; of a request's drafts and its last token no more are kept than `max_num_kept`."""
        num_drafted = 0 if batch.num_draft_tokens_per_req is None else batch.num_draft_tokens_per_req
        reached = batch.num_computed_tokens_np + batch.num_scheduled_tokens - num_drafted
        return cls(
            slots=batch.idx_mapping_np,
            query_lens=np.where(
                batch.is_prefilling_np, batch.num_scheduled_tokens, np.minimum(batch.num_scheduled_tokens, max_num_kept)
            ),
            num_computed=batch.num_computed_tokens_np,
            is_prefill=batch.is_prefilling_np,
            will_sample=reached >= batch.prefill_len_np,
        )


class DraftKV:
    """Counts, by request slot, the leading tokens of which the draft's cache holds keys and values.

    The exact count is on the device (`num_tokens`), where rejections are known; the host keeps an upper bound of what
    is missing, which sizes a forward without asking the device. The invariant, at the start of every step:

        of the first `num_tokens[slot]` tokens, those that the target has kept are in the draft's cache, and
        kept tokens - num_tokens[slot] <= missing[slot]      (-1: the cache has the bonus token as well)

    A forward lays out at least the missing tokens, so that its rows begin where the cache ends
    (`prepare_draft_inputs`). Blocks of prompts may pass to other requests through vLLM's prefix cache, so every prompt
    is read in the step that computes it, whatever K is.
    """

    def __init__(self, num_slots: int, device: torch.device, *, carries_features: bool = False) -> None:
        self.num_tokens = torch.zeros(num_slots, dtype=torch.int32, device=device)  # [R]
        # Leading tokens that end with the one whose feature of the target a slot carries (PARD-2), 0: none. [R]
        self.num_carried = torch.zeros_like(self.num_tokens) if carries_features else None
        self._missing = np.zeros(num_slots, dtype=np.int32)
        self._next_chunk = np.full(num_slots, NOT_IN_A_PROMPT, dtype=np.int32)  # where an unfinished prompt goes on

    def enter(self, step: StepRequests) -> None:
        """Enter a step's requests; the count of a new or resumed one starts anew.

        Its prefill does not go on where this slot's last one stopped. What it has computed comes from the prefix cache,
        with the draft's keys and values, but without the target's features.
        """
        slots = step.slots
        is_new = step.is_prefill & (step.num_computed != self._next_chunk[slots])
        self._missing[slots[is_new]] = 0
        self._next_chunk[slots] = np.where(step.will_sample, NOT_IN_A_PROMPT, step.num_computed + step.query_lens)
        if is_new.any():
            new_slots = async_tensor_h2d(slots[is_new], self.num_tokens.device, torch.int64)
            self.num_tokens[new_slots] = async_tensor_h2d(step.num_computed[is_new], new_slots.device, torch.int32)
            if self.num_carried is not None:
                self.num_carried[new_slots] = 0

    def skip(self, step: StepRequests, requests: slice) -> None:
        """Record requests that this step does not draft for."""
        self._missing[step.slots[requests]] += step.query_lens[requests]

    def plan(
        self, step: StepRequests, requests: slice, *, num_drafts: int, max_num_rows: int, max_model_len: int
    ) -> Iterator[IntArray]:
        """Yield the spans [B] of each forward for `requests`: catch-up forwards as needed, then the one that drafts.

        A span is a number of rows. It holds the missing tokens and, for a request that samples, bonus token and K - 1
        mask tokens; with K = 0 the missing tokens only. Each forward has at most `max_num_rows` rows; only what skipped
        steps have left needs more than one.

        Raises ValueError if even the smallest drafting forward does not fit.
        """
        slots, will_sample = step.slots[requests], step.will_sample[requests]
        pending = self._missing[slots] + step.query_lens[requests]
        tail = np.where(will_sample, num_drafts, 0)

        def spans(pending: IntArray) -> IntArray:  # [B] -> [B]
            fitted: IntArray = np.clip(pending + tail, 1, max_model_len).astype(np.int32)
            return fitted

        caught_up = np.minimum(pending, 1)
        if (smallest := int(spans(caught_up).sum())) > max_num_rows:
            raise ValueError(
                f"a draft forward for {len(slots)} requests with {num_drafts} draft tokens each needs {smallest} rows; "
                f"max_num_batched_tokens={max_num_rows} allows fewer: raise it, or lower num_speculative_tokens"
            )
        while int(spans(pending).sum()) > max_num_rows:
            rows = share_rows(pending - 1, max_num_rows)
            yield rows
            pending = np.maximum(pending - rows, caught_up)
        yield spans(pending)
        self._missing[slots] = np.where(will_sample & (num_drafts > 0), -1, 0)


def share_rows(wanted: IntArray, max_num_rows: int) -> IntArray:
    """Give every request one row, and the rest of the rows to the first that want more. [B] -> [B]"""
    more = np.maximum(wanted, 1) - 1
    before = np.concatenate(([0], np.cumsum(more)[:-1]))
    rows: IntArray = (1 + np.clip(max_num_rows - len(wanted) - before, 0, more)).astype(np.int32)
    return rows
