"""The rows of a draft forward, laid out by one kernel in buffers that CUDA graphs read.

B requests · R request slots · K draft tokens · D draft rows
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pard_kernels import prepare_draft_inputs
from torch import Tensor
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.input_batch import InputBatch

NO_REQUEST = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftStep:
    """What one step of the target tells the draft."""

    batch: InputBatch
    slots: Tensor  # [B] int64, NO_REQUEST for a dummy
    num_sampled: Tensor  # [B] int32
    num_rejected: Tensor  # [B] int32
    last_sampled: Tensor  # [R, 1] int64
    num_drafts: int  # K
    has_attention: bool = True  # False while vLLM profiles without a K/V cache


class DraftRows:
    """Lays out requests of a step that follow one another; each owns consecutive rows at consecutive positions."""

    def __init__(self, speculator: Any, num_draft_kv: Tensor) -> None:
        """`num_draft_kv` [R] int32 is `DraftKV.num_tokens`."""
        self.buffers: Any = speculator.input_buffers
        self.request_slots: Tensor = speculator.idx_mapping  # [max requests] int64
        self.num_draft_kv = num_draft_kv
        self.all_token_ids: Any = speculator.request_state.all_token_ids
        self.mask_token_id: int = speculator.speculative_config.mask_token_id
        self.vocab_size = int(speculator.draft_model_config.get_vocab_size())
        self.max_model_len: int = speculator.max_model_len
        num_requests, depth = len(self.request_slots), speculator.depth
        self._sample_rows = torch.zeros(num_requests * depth, dtype=torch.int64, device=num_draft_kv.device)
        self._cache: tuple[Any, int] | None = None  # vLLM's block tables, and which of them is the draft's
        # While vLLM profiles there is no K/V cache: no slots to store in.
        self._no_blocks = num_draft_kv.new_zeros(num_requests, 1)
        self.slot_mapping = torch.empty(len(self.buffers.input_ids), dtype=torch.int64, device=num_draft_kv.device)

    def use_cache(self, block_tables: Any, group: int) -> None:
        """Take the K/V cache's layout."""
        self._cache = block_tables, group
        # The target is through with it in this step, and graphs read it where upstream captures it.
        self.slot_mapping = block_tables.slot_mappings[group]

    def _blocks(self) -> tuple[Tensor, Tensor, int]:
        """Block ids [R, N], number of blocks [R] and block size, of this step: vLLM's tensors change their place."""
        if self._cache is None:
            return self._no_blocks, self._no_blocks[:, 0], 1
        tables, group = self._cache
        return tables.block_tables[group].gpu, tables.num_blocks.gpu[group], tables.block_sizes[group]

    def sample_rows(self, num_reqs: int, num_drafts: int) -> Tensor:
        """The row that each draft token is read from. [B, K] int64"""
        return self._sample_rows[: num_reqs * num_drafts].view(num_reqs, num_drafts)

    def clear(self) -> None:
        """Leave nothing that belongs to a request, for captures."""
        self._sample_rows.zero_()
        self.request_slots.fill_(NO_REQUEST)

    def lay_out(
        self,
        step: DraftStep,
        query_start_loc: NDArray[np.int32],  # [B + 1]; of more requests than the step has, those beyond are padding
        *,
        first: int,
        caches_masks: bool,
    ) -> None:
        """Lay out the step's requests from `first` on. Raises ValueError if the buffers are too small."""
        buffers, batch = self.buffers, step.batch
        num_reqs, num_rows = len(query_start_loc) - 1, int(query_start_loc[-1])
        if num_rows > len(buffers.input_ids):
            raise ValueError(f"a draft forward of {num_rows} rows exceeds its buffers of {len(buffers.input_ids)} rows")
        slots = self.request_slots[:num_reqs]
        of_step = step.slots[first : first + num_reqs]
        slots[: len(of_step)].copy_(of_step)
        slots[len(of_step) :].fill_(NO_REQUEST)
        device_query_start_loc = buffers.query_start_loc[: num_reqs + 1]
        async_tensor_h2d(query_start_loc, out=device_query_start_loc)
        block_table, num_blocks, block_size = self._blocks()
        prepare_draft_inputs(
            target_input_ids=batch.input_ids,
            target_positions=batch.positions,
            target_query_start_loc=batch.query_start_loc[first:],
            request_slots=slots,
            num_sampled=step.num_sampled[first:],
            num_rejected=step.num_rejected[first:],
            last_sampled=step.last_sampled,
            all_token_ids=self.all_token_ids.gpu,
            block_table=block_table,
            num_blocks=num_blocks,
            num_draft_kv=self.num_draft_kv,
            query_start_loc=device_query_start_loc,
            input_ids=buffers.input_ids[:num_rows],
            positions=buffers.positions[:num_rows],
            slot_mapping=self.slot_mapping[:num_rows],
            seq_lens=buffers.seq_lens[:num_reqs],
            sample_rows=self.sample_rows(num_reqs, step.num_drafts),
            block_size=block_size,
            mask_token_id=self.mask_token_id,
            vocab_size=self.vocab_size,
            max_model_len=self.max_model_len,
            caches_masks=caches_masks,
        )
