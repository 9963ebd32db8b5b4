"""PARD on model runner V2: one draft forward a step.

B requests · R request slots · K draft tokens · D draft rows · H hidden size
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.config.compilation import CUDAGraphMode
from vllm.distributed.parallel_state import get_tp_group
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor
from vllm.v1.worker.gpu.states import RequestState

from vllm_pard.config import ConfigError
from vllm_pard.drafting.backlog import DraftBacklog
from vllm_pard.serving.draft_forward import DraftForward, DraftStep
from vllm_pard.serving.draft_graphs import DraftGraphs, graph_mode
from vllm_pard.serving.draft_group import tensor_parallel_group
from vllm_pard.serving.draft_sampling import FilteredDrafts


class PardSpeculator(DraftForward):
    """Drafts K tokens a request in one forward over pending tokens and K - 1 mask tokens (PARD, arXiv 2504.18583).

    Steps between prefills replay a CUDA graph of forward and sampling. The draft's K/V lives in the target's blocks,
    so prefix caching and preemption work as for any draft model; `num_draft_kv` counts on the device how much of it is
    valid.
    """

    draft_tokens: Tensor  # [R, K] int64

    def __init__(self, vllm_config: Any, device: torch.device, request_state: RequestState) -> None:
        super().__init__(vllm_config, device, request_state)
        if self.draft_watermarker is not None:
            raise ConfigError("PARD does not support watermarked drafts: leave the watermark config out")
        self.num_query_per_req = 1 + self.num_speculative_steps
        self.num_extra_query_per_req = self.num_speculative_steps
        self.backlog = DraftBacklog(self.max_num_reqs)
        self.graphs: DraftGraphs | None = None
        self.filtered_drafts: FilteredDrafts | None = None  # with probabilistic drafts, once the sampler is built

    def init_cudagraph_manager(self, cudagraph_mode: CUDAGraphMode) -> None:
        """Plan a graph for each batch size and K, where the draft's attention can be captured."""
        enforce_eager = bool(self.speculative_config.enforce_eager)
        mode = graph_mode(cudagraph_mode, self.attn_cg_support, enforce_eager=enforce_eager)
        self.graphs = DraftGraphs(self.vllm_config, self.device, mode)

    def capture(self) -> None:
        """Capture the planned graphs, on rows that touch no request."""
        if self.graphs is None or not self.graphs.needs_capture():
            return
        self.sample_rows.zero_()
        self.idx_mapping.fill_(-1)
        with tensor_parallel_group(self.draft_group):
            self.graphs.capture(
                self._graph_step,
                self.input_buffers,
                self.block_tables,
                self.attn_groups,
                self.kv_cache_config,
                self.max_model_len,
                causal=True,
                prepare_forward=self._refresh_metadata,
                progress_bar_desc="Capturing CUDA graphs of the PARD draft",
            )

    @torch.inference_mode()
    def propose(
        self,
        input_batch: Any,
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
        self._place_requests(batch, temperature, seeds, is_dummy=dummy_run)
        step = DraftStep(
            batch=batch,
            num_sampled=num_sampled,
            num_rejected=num_rejected,
            last_sampled=last_sampled,
            is_dummy=dummy_run,
            has_attention=not (dummy_run and skip_attn_for_dummy_run),
        )
        with tensor_parallel_group(self.draft_group):
            self._draft_dummy(step, num_drafts) if dummy_run else self._draft_or_skip(step, num_drafts)
        if self.filtered_drafts is not None and not dummy_run:
            self.filtered_drafts.redraw(batch.idx_mapping_np, num_drafts)
        if self.draft_group is not None:
            # Ranks that differed in a single draft token would verify different texts; one small message rules it out.
            get_tp_group().broadcast(self.draft_tokens)
        return self.draft_tokens[: batch.num_reqs]

    def _place_requests(self, batch: Any, temperature: Tensor, seeds: Tensor, *, is_dummy: bool) -> None:
        """Put where graphs read it what a step's requests are; -1 is no request."""
        if self.draft_logits is not None or self.acceptance_estimator is not None:
            self._copy_request_inputs(batch.num_reqs, batch.idx_mapping, temperature, seeds, dummy_run=is_dummy)
            return
        self.idx_mapping.fill_(-1)  # greedy drafts ask for nothing else
        if not is_dummy:
            self.idx_mapping[: batch.num_reqs].copy_(batch.idx_mapping)

    def _draft_dummy(self, step: DraftStep, num_drafts: int) -> None:
        """Run a draft step of full size that touches no request: profiling, warm-up, idle data-parallel ranks."""
        spans = np.minimum(step.batch.num_scheduled_tokens + num_drafts, self.max_model_len).astype(np.int32)
        self._sample(self._forward(step, spans, num_drafts), step.batch.num_reqs, num_drafts)

    def _draft_or_skip(self, step: DraftStep, num_drafts: int) -> None:
        """Draft K tokens a request; a step that wants none is only noted, and the next one that drafts catches up.

        Where no request samples, the draft reads the prompts whatever K: the prefix cache may hand their blocks on.
        """
        batch = step.batch
        slots, query_lens, num_computed = batch.idx_mapping_np, batch.num_scheduled_tokens, batch.num_computed_tokens_np
        num_drafted = 0 if batch.num_draft_tokens_per_req is None else batch.num_draft_tokens_per_req
        will_sample = num_computed + query_lens - num_drafted >= batch.prefill_len_np
        is_new = self.backlog.enter(slots, batch.req_ids, num_computed, query_lens, batch.is_prefilling_np, will_sample)
        if is_new.any():
            # Blocks that the prefix cache hands over hold the draft's K/V as well as the target's.
            cached = async_tensor_h2d(num_computed[is_new], self.device, torch.int32)
            self.num_draft_kv[async_tensor_h2d(slots[is_new], self.device, torch.int64)] = cached
        if num_drafts == 0 and will_sample.any():
            self.backlog.skip(slots, query_lens)
            return
        *catch_up, spans = self.backlog.plan(
            slots, query_lens, will_sample, num_drafts, self.max_num_tokens, self.max_model_len
        )
        for part in catch_up:
            self._forward(step, part, num_drafts)
        shape = self.graphs.find(batch.num_reqs, num_drafts, int(spans.max())) if self.graphs is not None else None
        if shape is not None:
            self._replay(step, shape, num_drafts)
            return
        hidden_states = self._forward(step, spans, num_drafts)
        if num_drafts == 0:
            return
        # The estimator knows a request by its place in the batch.
        if will_sample.all() or self.acceptance_estimator is not None:
            self._sample(hidden_states, batch.num_reqs, num_drafts)
        elif will_sample.any():
            self._sample(hidden_states, batch.num_reqs, num_drafts, np.flatnonzero(will_sample))

    def _replay(self, step: DraftStep, shape: BatchExecutionDescriptor, num_drafts: int) -> None:
        """Fill the rows of a graph and launch it."""
        query_start_loc = np.arange(shape.num_reqs + 1, dtype=np.int32) * shape.uniform_token_count
        self._prepare(step, query_start_loc, num_drafts)
        if not self.supports_decode_metadata_update:
            self._metadata(step, query_start_loc, shape)  # in buffers that the graph reads
        assert self.graphs is not None
        self.graphs.run_fullgraph(shape)

    def _refresh_metadata(self, num_reqs: int, attn_metadata: dict[str, Any] | None) -> None:
        """Captured ahead of the forward, if the attention's metadata can be kept up to date on the device."""
        if attn_metadata is not None and self.supports_decode_metadata_update:
            self._update_draft_decode_metadata(attn_metadata, num_reqs)

    def _graph_step(
        self,
        num_reqs: int,
        num_rows: int,
        attn_metadata: dict[str, Any] | None,
        slot_mappings: dict[str, Tensor] | None,
        num_tokens_across_dp: Tensor | None,
        cudagraph_runtime_mode: CUDAGraphMode,
    ) -> None:
        """What a graph holds: 2K rows of each request through the draft, K draft tokens out."""
        self._sample(self._run_rows(num_rows, attn_metadata, slot_mappings), num_reqs, num_rows // (2 * num_reqs))

    def _sample(
        self, hidden_states: Tensor, num_reqs: int, num_drafts: int, only: NDArray[np.signedinteger[Any]] | None = None
    ) -> None:
        """Sample K tokens a request from rows `sample_rows`, for all requests of the batch or `only` some of them.

        A draw is keyed by the position before its token.
        """
        rows, slots = self.sample_rows[: num_reqs * num_drafts].view(num_reqs, num_drafts), self.idx_mapping[:num_reqs]
        requests: Tensor | slice = slice(0, num_reqs)
        if only is not None:
            requests = async_tensor_h2d(only, self.device, torch.int64)
            rows, slots = rows[requests], slots[requests]
        flat = rows.flatten()  # [B * K]
        if self.head is not None:
            tokens = self.head.best(hidden_states[flat])
        else:
            tokens = self.sample_draft(
                hidden_states[flat],
                self.input_buffers.positions[flat],
                slots.repeat_interleave(num_drafts),
                self.temperature,
                self.seeds,
                torch.arange(num_drafts, device=self.device).repeat(len(slots)),
                self.draft_logits,
            )
        self.draft_tokens[requests, :num_drafts] = tokens.view(-1, num_drafts)
