"""Probabilistic drafts within the top-k, top-p and min-p of their request: what the target can't emit is not drafted.

N draft rows · K draft tokens · V target vocabulary
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample
from vllm.v1.worker.gpu.sample.states import SamplingStates
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import get_max_chunk_logits

from vllm_pard.serving.draft.vocabulary import NEVER

Slots = NDArray[np.signedinteger[Any]]


class FilteredDrafts:
    """Draws again, after a draft step, the drafts of those requests that filter.

    The step itself draws from the whole distribution, and its graph can't do otherwise: vLLM hands the filters of a
    step to the device in buffers that take turns, and a graph reads always the same. So filters cost nothing to who
    doesn't use them. The cached logits of the first draw are what the second one starts from; it leaves in their place
    the distribution that it drew from, which is what makes verification exact.
    """

    def __init__(self, speculator: Any, states: SamplingStates) -> None:
        self.speculator = speculator
        self.states = states

    def redraw(self, slots: Slots, num_drafts: int) -> None:
        """Replace `draft_tokens` and `draft_logits` of the requests with a filter; `slots` are those of the batch."""
        requests = np.flatnonzero(self._has_filter(slots))
        if num_drafts == 0 or len(requests) == 0:
            return
        drafting = self.speculator
        # In parts as large as those that vLLM verifies.
        max_num_requests = max(1, get_max_chunk_logits(drafting.draft_logits.shape[-1]) // num_drafts)
        for part in np.array_split(requests, -(-len(requests) // max_num_requests)):
            self._redraw(part, slots[part], num_drafts)
        if drafting.acceptance_estimator is not None:  # it knows a request by its place in the batch
            places, steps = _rows(async_tensor_h2d(slots, drafting.device, torch.int64), num_drafts)
            drafting._maybe_predict_acceptance(drafting.draft_logits[places, steps], places, steps)

    def _has_filter(self, slots: Slots) -> NDArray[np.bool_]:
        states = self.states
        is_filtered: NDArray[np.bool_] = (states.temperature.np[slots] != 0) & (
            (states.top_k.np[slots] != states.vocab_size)
            | (states.top_p.np[slots] != 1)
            | (states.min_p.np[slots] != 0)
        )
        return is_filtered

    def _redraw(self, requests: Slots, slots: Slots, num_drafts: int) -> None:
        drafting = self.speculator
        row_slots, steps = _rows(async_tensor_h2d(slots, drafting.device, torch.int64), num_drafts)  # [N], [N]
        logits = drafting.draft_logits[row_slots, steps]  # [N, V], before temperature
        tokens = gumbel_sample(
            logits.masked_fill_(self._is_outside(logits, row_slots, slots), -torch.inf),
            row_slots,
            drafting.temperature,
            drafting.seeds,
            drafting.request_state.total_len.gpu[row_slots] - 1 + steps,  # the position before each token
            apply_temperature=True,
            is_drafting=True,
            logits_cache=drafting.draft_logits,
            logits_cache_col=steps,
            use_fp64=drafting.use_fp64_gumbel,
        )
        places = async_tensor_h2d(requests, drafting.device, torch.int64)
        drafting.draft_tokens[places, :num_drafts] = tokens.view(-1, num_drafts)

    def _is_outside(self, logits: Tensor, row_slots: Tensor, slots: Slots) -> Tensor:
        """Which tokens the filters leave out, in the order of vLLM's sampler. [N, V] -> [N, V] bool"""
        scaled = logits.to(torch.float32, copy=True)
        # vLLM's kernel keeps every token of a row with a finite outlier; bf16 rounds NEVER up.
        scaled.masked_fill_(scaled < NEVER / 2, -torch.inf)
        self.states.apply_temperature(scaled, row_slots, slots)
        self.states.apply_min_p(scaled, row_slots, slots)
        kept: Tensor = self.states.apply_top_k_top_p(scaled, row_slots, slots)
        return kept == -torch.inf


def _rows(slots: Tensor, num_drafts: int) -> tuple[Tensor, Tensor]:
    """Slot and step of each draft of some requests. [any] -> [N], [N]"""
    return slots.repeat_interleave(num_drafts), torch.arange(num_drafts, device=slots.device).repeat(len(slots))
