"""The rows of a draft forward, laid out by one kernel in buffers that CUDA graphs read.

B requests · R request slots · K draft tokens · D draft rows
"""

from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pard_kernels import FeatureRows, prepare_draft_inputs
from torch import Tensor
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.input_batch import InputBatch

from vllm_pard.serving.draft.places import Places

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
    kept_rows: Tensor | None = None  # [T] int32, of trees: `prepare_draft_inputs`
    has_attention: bool = True  # False while vLLM profiles without a K/V cache


class DraftRows:
    """Lays out requests of a step that follow one another; each owns consecutive rows at consecutive positions."""

    def __init__(self, speculator: Any) -> None:
        """`speculator` has its `draft_kv`, and its `target_features` if it reads any."""
        self.buffers: Any = speculator.input_buffers
        self.num_draft_kv: Tensor = speculator.draft_kv.num_tokens  # [R] int32
        self.features: FeatureRows | None = speculator.target_features and speculator.target_features.rows
        self.all_token_ids: Any = speculator.request_state.all_token_ids
        self.mask_token_id: int = speculator.speculative_config.mask_token_id
        self.vocab_size = int(speculator.draft_model_config.get_vocab_size())
        self.max_model_len: int = speculator.max_model_len
        self._some_kept_rows: Tensor | None = speculator.trees and speculator.trees.kept_rows
        num_rows, num_samples = len(self.buffers.input_ids), speculator.max_num_reqs * speculator.depth
        self._sample_rows = torch.zeros(num_samples, dtype=torch.int64, device=self.num_draft_kv.device)
        # While vLLM profiles there is no K/V cache: no slots to store in.
        self._cache: tuple[Any, frozenset[int]] | None = None
        self.slot_mappings = torch.empty(1, num_rows, dtype=torch.int64, device=self.num_draft_kv.device)
        self._uniform_starts: dict[tuple[int, int], Tensor] = {}

    def use_cache(self, block_tables: Any, kv_groups: Iterable[int]) -> None:
        """Take the K/V cache's layout, and which of its groups hold layers of the draft."""
        self._cache = block_tables, frozenset(kv_groups)
        # The target is through with them in this step, and graphs read them where upstream captures them.
        self.slot_mappings = block_tables.slot_mappings

    def starts(self, query_start_loc: NDArray[np.int32]) -> Tensor:
        """Where each request's rows begin, in the buffer that attention reads. [B + 1] -> [B + 1] int32"""
        starts: Tensor = self.buffers.query_start_loc[: len(query_start_loc)]
        async_tensor_h2d(query_start_loc, out=starts)
        return starts

    def uniform_starts(self, num_reqs: int, width: int) -> Tensor:
        """The same where each has `width` rows, in a tensor that is made once. [B + 1] int32"""
        if (num_reqs, width) not in self._uniform_starts:
            rows = torch.arange(num_reqs + 1, dtype=torch.int32, device=self.num_draft_kv.device)
            self._uniform_starts[num_reqs, width] = rows * width
        return self._uniform_starts[num_reqs, width]

    def sample_rows(self, num_reqs: int, num_drafts: int) -> Tensor:
        """The row that each draft token is read from. [B, K] int64"""
        return self._sample_rows[: num_reqs * num_drafts].view(num_reqs, num_drafts)

    def clear(self) -> None:
        """Leave nothing that belongs to a request, for captures."""
        self._sample_rows.zero_()

    def lay_out(
        self,
        step: DraftStep,
        query_start_loc: Tensor,  # [B + 1] int32; of more requests than the step has, those beyond are padding
        num_rows: int,
        *,
        first: int,
        stop: int | None = None,
        caches_masks: bool,
    ) -> None:
        """Lay out the step's requests from `first` to before `stop`. Raises ValueError if the buffers are too small."""
        buffers, batch, num_reqs = self.buffers, step.batch, len(query_start_loc) - 1
        if num_rows > len(buffers.input_ids):
            raise ValueError(f"a draft forward of {num_rows} rows exceeds its buffers of {len(buffers.input_ids)} rows")
        block_tables, num_blocks, block_sizes = self._blocks()
        prepare_draft_inputs(
            target_input_ids=batch.input_ids,
            target_positions=batch.positions,
            target_query_start_loc=batch.query_start_loc[first:],
            kept_rows=step.kept_rows,
            request_slots=step.slots[first:stop][:num_reqs],
            num_sampled=step.num_sampled[first:],
            num_rejected=step.num_rejected[first:],
            last_sampled=step.last_sampled,
            all_token_ids=self.all_token_ids.gpu,
            block_tables=block_tables,
            num_blocks=num_blocks,
            num_draft_kv=self.num_draft_kv,
            query_start_loc=query_start_loc,
            input_ids=buffers.input_ids[:num_rows],
            positions=buffers.positions[:num_rows],
            slot_mappings=self.slot_mappings,
            seq_lens=buffers.seq_lens[:num_reqs],
            sample_rows=self.sample_rows(num_reqs, step.num_drafts),
            block_sizes=block_sizes,
            mask_token_id=self.mask_token_id,
            vocab_size=self.vocab_size,
            max_model_len=self.max_model_len,
            caches_masks=caches_masks,
            features=self.features,
        )

    def spread(self, places: Places, num_drafts: int) -> None:
        """Give the places of a graph what has been laid out for their requests."""
        num_places = len(places.owners)
        places.hand_out(self.sample_rows(num_places, num_drafts))
        places.hand_out(self.buffers.seq_lens)
        self.buffers.seq_lens[:num_places] -= places.rows_behind

    def warm_up(self, last_sampled: Tensor) -> None:
        """Compile the one variant there is with a K/V cache, by a step of no request."""
        nothing = self.num_draft_kv[:0]
        batch = SimpleNamespace(
            input_ids=self.buffers.input_ids,
            positions=self.buffers.positions,
            query_start_loc=self.num_draft_kv[:1],
        )
        step = DraftStep(
            batch=cast(InputBatch, batch),
            slots=nothing.long(),
            num_sampled=nothing,
            num_rejected=nothing,
            last_sampled=last_sampled,
            num_drafts=1,
            kept_rows=self._some_kept_rows,
        )
        self.lay_out(step, self.num_draft_kv[:1], 0, first=0, caches_masks=True)

    def _blocks(self) -> tuple[tuple[Tensor | None, ...], Tensor, tuple[int, ...]]:
        """Block ids, numbers of blocks and block sizes by group, of this step: vLLM's tensors change their place."""
        if self._cache is None:
            return (), self.num_draft_kv[None], ()
        tables, kv_groups = self._cache
        ids = tuple(table.gpu if group in kv_groups else None for group, table in enumerate(tables.block_tables))
        return ids, tables.num_blocks.gpu, tuple(tables.block_sizes)
