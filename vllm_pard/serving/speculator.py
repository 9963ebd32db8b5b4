"""PARD on model runner V2: one draft forward a step.

B requests · R request slots · K draft tokens · D draft rows · V target vocabulary
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pard_kernels import prepare_draft_inputs
from torch import Tensor, nn
from vllm.config.compilation import CUDAGraphMode
from vllm.config.utils import replace
from vllm.distributed.parallel_state import get_tp_group
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.attn_utils import build_slot_mappings_by_layer
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.spec_decode.standalone_ar.speculator import StandaloneARSpeculator
from vllm.v1.worker.gpu.states import RequestState

from vllm_pard.config import ConfigError
from vllm_pard.drafting.backlog import DraftBacklog
from vllm_pard.serving.attention import PardAttentionBackend, register, takes
from vllm_pard.serving.draft_group import group_of_one, tensor_parallel_group
from vllm_pard.serving.vocabulary import NEVER, use_target_vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftStep:
    """What one step tells the draft."""

    batch: InputBatch
    num_sampled: Tensor  # [B] int32
    num_rejected: Tensor  # [B] int32
    last_sampled: Tensor  # [R, 1] int64
    num_tokens_across_dp: Tensor | None
    is_dummy: bool
    has_attention: bool


class PardSpeculator(StandaloneARSpeculator):
    """Drafts K tokens a request in one forward over pending tokens and K - 1 mask tokens (PARD, arXiv 2504.18583).

    Loading and running the draft are vLLM's; what a forward holds is laid out by `prepare_draft_inputs`. The draft's
    K/V lives in the target's blocks, so prefix caching and preemption work as for any draft model; `num_draft_kv`
    counts on the device how much of it is valid.
    """

    vllm_config: Any
    draft_logits: Tensor | None  # [R, K, V], only for probabilistic drafts
    draft_tokens: Tensor  # [R, K] int64

    def __init__(self, vllm_config: Any, device: torch.device, request_state: RequestState) -> None:
        super().__init__(vllm_config, device)
        if self.draft_watermarker is not None:
            raise ConfigError("PARD does not support watermarked drafts: leave the watermark config out")
        spec = self.speculative_config
        self.num_query_per_req = 1 + self.num_speculative_steps
        self.num_extra_query_per_req = self.num_speculative_steps
        self.mask_token_id = spec.mask_token_id
        self.request_state = request_state
        self.draft_group = self._own_group() if spec.draft_parallel_config.tensor_parallel_size == 1 else None
        self.draft_vocab_size = int(self.draft_model_config.get_vocab_size())
        self.target_vocab_size = int(vllm_config.model_config.get_vocab_size())
        if self.draft_logits is not None and self.draft_vocab_size != self.target_vocab_size:
            shape = (self.max_num_reqs, self.num_speculative_steps, self.target_vocab_size)
            self.draft_logits = torch.full(shape, NEVER, dtype=self.draft_logits.dtype, device=device)

        self.has_own_attention = False  # known once the K/V cache is
        self.backlog = DraftBacklog(self.max_num_reqs)
        self.num_draft_kv = torch.zeros(self.max_num_reqs, dtype=torch.int32, device=device)
        self.slot_mapping = torch.empty(self.max_num_tokens, dtype=torch.int64, device=device)
        self.sample_rows = torch.zeros(self.max_num_reqs * self.num_speculative_steps, dtype=torch.int64, device=device)

    def load_draft_model(self, target_model: nn.Module, target_attn_layer_names: set[str]) -> nn.Module:
        """Load the draft through vLLM, with its own attention backend, answering in the target's vocabulary."""
        with tensor_parallel_group(self.draft_group), self._draft_attention_backend():
            model: nn.Module = super().load_draft_model(target_model, target_attn_layer_names)
        use_target_vocabulary(model, self.draft_vocab_size, self.target_vocab_size)
        return model

    def set_attn(self, *args: Any, **kwargs: Any) -> None:
        """Take the K/V cache's layout; the draft's layers must share one K/V cache group."""
        super().set_attn(*args, **kwargs)
        self.expanded_slot_mappings = self.slot_mapping[None]
        groups = [
            index
            for index, group in enumerate(self.kv_cache_config.kv_cache_groups)
            if self.draft_attn_layer_names & set(group.layer_names)
        ]
        if len(groups) != 1:
            raise ConfigError(
                f"PARD needs a draft whose layers share one K/V cache group; this one's are in {len(groups)} "
                "(it mixes full and sliding-window attention): use another draft"
            )
        self.kv_cache_group = groups[0]
        layers = self.vllm_config.compilation_config.static_forward_context
        self.has_own_attention = all(
            layers[name].attn_backend is PardAttentionBackend for name in self.draft_attn_layer_names
        )

    @torch.inference_mode()
    def propose(
        self,
        input_batch: InputBatch,
        attn_metadata: dict[str, Any],
        slot_mappings: dict[str, Tensor],
        last_hidden_states: Tensor,
        aux_hidden_states: list[Tensor] | None,
        num_sampled: Tensor,
        num_rejected: Tensor,
        last_sampled: Tensor,
        next_prefill_tokens: Tensor,
        temperature: Tensor,
        seeds: Tensor,
        dp_sync_state: Any = None,
        dummy_run: bool = False,
        skip_attn_for_dummy_run: bool = False,
        mm_inputs: Any = None,
        is_profile: bool = False,
        num_speculative_tokens: int | None = None,
    ) -> Tensor:
        """Draft for every request of the step. Returns [B, K] int64; columns past the step's own K are stale."""
        num_drafts = self.num_speculative_steps if num_speculative_tokens is None else num_speculative_tokens
        batch = input_batch
        self._copy_request_inputs(batch.num_reqs, batch.idx_mapping, temperature, seeds, dummy_run=dummy_run)
        step = DraftStep(
            batch=batch,
            num_sampled=num_sampled,
            num_rejected=num_rejected,
            last_sampled=last_sampled,
            num_tokens_across_dp=None if dp_sync_state is None else dp_sync_state.num_tokens_across_dp,
            is_dummy=dummy_run,
            has_attention=not (dummy_run and skip_attn_for_dummy_run),
        )
        with tensor_parallel_group(self.draft_group):
            self._draft_dummy(step, num_drafts) if dummy_run else self._draft_or_skip(step, num_drafts)
        if self.draft_group is not None:
            # Ranks that differed in a single draft token would verify different texts; one small message rules it out.
            get_tp_group().broadcast(self.draft_tokens)
        return self.draft_tokens[: batch.num_reqs]

    @contextmanager
    def _draft_attention_backend(self) -> Iterator[None]:
        """The draft's layers read their backend from the config of the whole engine."""
        config, backend = self.vllm_config, self.speculative_config.attention_backend
        if backend is not None:
            register()
            self.vllm_config = replace(config, attention_config=replace(config.attention_config, backend=backend))
        try:
            yield
        finally:
            self.vllm_config = config

    def _own_group(self) -> Any | None:
        return group_of_one() if self.vllm_config.parallel_config.tensor_parallel_size > 1 else None

    def _draft_dummy(self, step: DraftStep, num_drafts: int) -> None:
        """Run a draft step of full size that touches no request: profiling, warm-up, idle data-parallel ranks."""
        spans = np.minimum(step.batch.num_scheduled_tokens + num_drafts, self.max_model_len).astype(np.int32)
        self._sample(self._forward(step, spans, num_drafts), step.batch.num_reqs, num_drafts)

    def _draft_or_skip(self, step: DraftStep, num_drafts: int) -> None:
        """Draft K tokens a request; a step that wants none is only noted, and the next one that drafts catches up."""
        batch = step.batch
        slots, query_lens, num_computed = batch.idx_mapping_np, batch.num_scheduled_tokens, batch.num_computed_tokens_np
        num_drafted = 0 if batch.num_draft_tokens_per_req is None else batch.num_draft_tokens_per_req
        will_sample = num_computed + query_lens - num_drafted >= batch.prefill_len_np
        is_new = self.backlog.enter(slots, batch.req_ids, num_computed, query_lens, batch.is_prefilling_np, will_sample)
        if is_new.any():
            # Blocks that the prefix cache hands over hold the draft's K/V as well as the target's.
            cached = async_tensor_h2d(num_computed[is_new], self.device, torch.int32)
            self.num_draft_kv[async_tensor_h2d(slots[is_new], self.device, torch.int64)] = cached
        if num_drafts == 0:
            self.backlog.skip(slots, query_lens)
            return
        for spans in self.backlog.plan(
            slots, query_lens, will_sample, num_drafts, self.max_num_tokens, self.max_model_len
        ):
            hidden_states = self._forward(step, spans, num_drafts)
        if will_sample.any():
            self._sample(hidden_states, batch.num_reqs, num_drafts)

    def _forward(self, step: DraftStep, spans: NDArray[np.int32], num_drafts: int) -> Tensor:
        """Run the draft over `spans[b]` rows of each request. Returns hidden states [D, H]."""
        query_start_loc = np.concatenate(([0], np.cumsum(spans))).astype(np.int32)
        num_rows = int(query_start_loc[-1])
        self._prepare(step, query_start_loc, num_drafts)
        metadata, slot_mappings = None, None
        if step.has_attention:
            metadata, slot_mappings = self._attention(step, query_start_loc)
        hidden_states: Tensor = self._run_model(
            self.input_buffers.input_ids[:num_rows],
            self.input_buffers.positions[:num_rows],
            metadata,
            slot_mappings,
            step.num_tokens_across_dp,
        )
        return hidden_states

    def _prepare(self, step: DraftStep, query_start_loc: NDArray[np.int32], num_drafts: int) -> None:
        batch, buffers, state = step.batch, self.input_buffers, self.request_state
        num_reqs, num_rows = batch.num_reqs, int(query_start_loc[-1])
        device_query_start_loc = buffers.query_start_loc[: num_reqs + 1]
        async_tensor_h2d(query_start_loc, out=device_query_start_loc)
        block_table, num_blocks, block_size = self._block_table()
        prepare_draft_inputs(
            target_input_ids=batch.input_ids,
            target_positions=batch.positions,
            target_query_start_loc=batch.query_start_loc,
            request_slots=self.idx_mapping[:num_reqs],
            num_sampled=step.num_sampled,
            num_rejected=step.num_rejected,
            last_sampled=step.last_sampled,
            all_token_ids=state.all_token_ids.gpu,
            block_table=block_table,
            num_blocks=num_blocks,
            num_draft_kv=self.num_draft_kv,
            query_start_loc=device_query_start_loc,
            input_ids=buffers.input_ids[:num_rows],
            positions=buffers.positions[:num_rows],
            slot_mapping=self.slot_mapping[:num_rows],
            seq_lens=buffers.seq_lens[:num_reqs],
            sample_rows=self.sample_rows[: num_reqs * num_drafts].view(num_reqs, num_drafts),
            block_size=block_size,
            mask_token_id=self.mask_token_id,
            vocab_size=self.draft_vocab_size,
            max_model_len=self.max_model_len,
            caches_masks=not (self.has_own_attention and takes(int(np.diff(query_start_loc).max()))),
        )

    def _block_table(self) -> tuple[Tensor, Tensor, int]:
        """Block ids [R, N], number of blocks [R], block size; all empty while vLLM profiles without a K/V cache."""
        if not hasattr(self, "kv_cache_group"):
            none = self.num_draft_kv.new_zeros(self.max_num_reqs, 1)
            return none, none[:, 0], 1
        tables, group = self.block_tables, self.kv_cache_group
        return tables.block_tables[group].gpu, tables.num_blocks.gpu[group], tables.block_sizes[group]

    def _attention(
        self, step: DraftStep, query_start_loc: NDArray[np.int32]
    ) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
        batch, num_rows = step.batch, int(query_start_loc[-1])
        num_groups = len(self.kv_cache_config.kv_cache_groups)
        slot_mappings = self.slot_mapping[:num_rows].expand(num_groups, num_rows)
        upper_bound = batch.seq_lens_cpu_upper_bound
        longest = int(upper_bound[: batch.num_reqs].max()) + self.num_speculative_steps
        self.draft_max_seq_len = min(max(longest, int(np.diff(query_start_loc).max())), self.max_model_len)
        metadata = self._build_attn_metadata(
            num_reqs=batch.num_reqs,
            batch_desc=BatchExecutionDescriptor(
                cg_mode=CUDAGraphMode.NONE, num_tokens=num_rows, num_reqs=batch.num_reqs
            ),
            query_start_loc_np=query_start_loc,
            seq_lens_cpu_upper_bound=upper_bound,
            step=self.num_speculative_steps,
            slot_mappings=slot_mappings,
        )
        return metadata, build_slot_mappings_by_layer(slot_mappings, self.kv_cache_config)

    def _sample(self, hidden_states: Tensor, num_reqs: int, num_drafts: int) -> None:
        """Sample K tokens a request from rows `sample_rows`; a draw is keyed by the position before its token."""
        rows = self.sample_rows[: num_reqs * num_drafts]  # [B * K]
        columns = torch.arange(num_drafts, device=self.device).repeat(num_reqs)
        tokens = self.sample_draft(
            hidden_states[rows],
            self.input_buffers.positions[rows],
            self.idx_mapping[:num_reqs].repeat_interleave(num_drafts),
            self.temperature,
            self.seeds,
            columns,
            self.draft_logits,
        )
        self.draft_tokens[:num_reqs, :num_drafts] = tokens.view(num_reqs, num_drafts)
