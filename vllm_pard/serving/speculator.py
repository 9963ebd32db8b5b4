"""PARD on model runner V2: one draft forward a step. `propose` is the step, in order.

B requests · R request slots · K draft tokens · D draft rows · H hidden size · V target vocabulary
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from vllm.config.compilation import CUDAGraphMode
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.spec_decode.speculator import DraftModelSpeculator
from vllm.v1.worker.gpu.states import RequestState

from vllm_pard.config import ConfigError
from vllm_pard.serving.attention.backends import warm_up as warm_up_attention_layers
from vllm_pard.serving.draft.attention import DraftAttention
from vllm_pard.serving.draft.forward import DraftForward
from vllm_pard.serving.draft.group import agree, group_of_draft, tensor_parallel_group
from vllm_pard.serving.draft.head import GreedyHead
from vllm_pard.serving.draft.kv import DraftKV, StepRequests
from vllm_pard.serving.draft.loading import load_draft
from vllm_pard.serving.draft.model import DraftModel, draft_vllm_config
from vllm_pard.serving.draft.rows import NO_REQUEST, DraftRows, DraftStep
from vllm_pard.serving.draft.sampling import FilteredDrafts
from vllm_pard.serving.draft.target_features import TargetFeatures
from vllm_pard.serving.draft.vocabulary import in_target_vocabulary
from vllm_pard.serving.tree.model_state import use_trees
from vllm_pard.serving.tree.trees import Trees

IntArray = NDArray[np.int32]


class PardSpeculator(DraftModelSpeculator):
    """Drafts K tokens a request in one forward over missing tokens and K - 1 mask tokens (PARD, arXiv 2504.18583).

    Decodes replay a CUDA graph of forward and sampling. The draft's K/V lives in the target's blocks, so prefix caching
    and preemption work as for any draft model.
    """

    draft_tokens: Tensor  # [R, K] int64
    draft_logits: Tensor | None  # [R, K, V], only for probabilistic drafts

    def __init__(self, vllm_config: Any, device: torch.device, request_state: RequestState) -> None:
        super().__init__(vllm_config, device)
        if self.draft_watermarker is not None:
            raise ConfigError("PARD does not support watermarked drafts: leave the watermark config out")
        self.depth = int(self.speculative_config.draft_depth)
        self.num_query_per_req = 1 + self.num_speculative_steps
        self.num_extra_query_per_req = self.depth
        self.request_state = request_state
        self.draft_group = group_of_draft(vllm_config)
        if self.draft_logits is not None:
            self.draft_logits = in_target_vocabulary(self.draft_logits, vllm_config.model_config.get_vocab_size())
        reads_target = self.speculative_config.reads_target_states
        self.trees = Trees.of(self)
        self.draft_kv = DraftKV(self.max_num_reqs, device, carries_features=reads_target)
        self.target_features = TargetFeatures(self) if reads_target else None
        self.rows = DraftRows(self)
        self.forward = DraftForward(self)
        self.head: GreedyHead | None = None  # None: the model's logits choose the tokens
        self.filtered_drafts: FilteredDrafts | None = None  # with probabilistic drafts, once the sampler is built

    def load_draft_model(self, target_model: nn.Module, target_attn_layer_names: set[str]) -> nn.Module:
        """Load the draft through vLLM, answering in the target's vocabulary."""
        if self.trees is not None:
            use_trees(target_model, self.vllm_config, self.trees, target_attn_layer_names)
        with tensor_parallel_group(self.draft_group):
            module, self.head = load_draft(self)
        if self.target_features is not None:
            self.target_features.load()
        self.forward.model = DraftModel(module=module, vllm_config=self.vllm_config)
        return module

    @property
    def attn_vllm_config(self) -> Any:
        """The config that the draft's metadata builders read: with the dtype of its own K/V cache."""
        return draft_vllm_config(self.vllm_config, None) if self.speculative_config.kv_cache_dtype else self.vllm_config

    def set_attn(self, *args: Any, **kwargs: Any) -> None:
        """Take the K/V cache's layout."""
        super().set_attn(*args, **kwargs)
        self.forward.attention = DraftAttention(self)
        self.rows.use_cache(self.block_tables, self.forward.attention.kv_groups)

    def init_cudagraph_manager(self, cudagraph_mode: CUDAGraphMode) -> None:
        """Plan graphs of the draft, where its attention can be captured."""
        self.forward.plan_graphs(self.vllm_config, self.device, cudagraph_mode)

    def capture(self) -> None:
        """Capture the planned graphs, on rows that touch no request."""
        graphs, attention = self.forward.graphs, self.forward.attention
        if graphs is None or attention is None or not graphs.needs_capture():
            return
        with tensor_parallel_group(self.draft_group):
            attention.try_refresh(2 * self.depth)
            if self.head is not None:
                self.head.measure(graphs.numbers_of_drafts)
            self.rows.clear()
            self.idx_mapping.fill_(NO_REQUEST)
            graphs.capture_steps(self, self._graph_step)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compile every kernel variant that a step can need, so that serving compiles none."""
        warm_up_attention_layers(self.vllm_config, self.dtype, self.trees.warm_up() if self.trees is not None else {})
        if self.head is not None:
            self.head.warm_up(self.dtype)
        self.rows.warm_up(self.request_state.last_sampled_tokens)
        if self.target_features is not None:
            self.target_features.warm_up()

    def reload_weights(self) -> None:
        """Take the draft's weights again where copies of them are used."""
        if self.head is not None:
            self.head.reload()
        if self.target_features is not None:
            self.target_features.load()

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
        slots = input_batch.idx_mapping
        step = DraftStep(
            batch=input_batch,
            slots=torch.full_like(slots, NO_REQUEST) if dummy_run else slots,
            num_sampled=num_sampled,
            num_rejected=num_rejected,
            last_sampled=last_sampled,
            num_drafts=self.depth if num_speculative_tokens is None else min(num_speculative_tokens, self.depth),
            kept_rows=None if self.trees is None else self.trees.kept(input_batch, num_sampled, dummy_run=dummy_run),
            has_attention=not (dummy_run and skip_attn_for_dummy_run),
        )
        if self.draft_logits is not None or self.acceptance_estimator is not None or self.trees is not None:
            self._copy_request_inputs(input_batch.num_reqs, step.slots, temperature, seeds)  # to where graphs read them
        if self.target_features is not None:
            self.target_features.take(last_hidden_states, aux_hidden_states)
        with tensor_parallel_group(self.draft_group):
            if dummy_run:
                self._draft_dummy(step)
            else:
                self._draft(step)
        if self.filtered_drafts is not None and not dummy_run:
            self.filtered_drafts.redraw(input_batch.idx_mapping_np, step.num_drafts)
        if self.draft_group is not None:
            agree(self)
        return self.draft_tokens[: input_batch.num_reqs]

    def _draft(self, step: DraftStep) -> None:
        """Read what the draft lacks and draft; with K = 0 the prompts are read and decodes wait.

        The prefix cache may hand a prompt's blocks on, so they are read in the step that computes them. Features of the
        target are there in that step alone, so a draft that takes them reads everything in it.
        """
        requests = StepRequests.of(step.batch, 1 + self.depth)
        self.draft_kv.enter(requests)
        first = 0
        if step.num_drafts == 0 and self.target_features is None:
            first = int(requests.is_prefill.argmax()) if requests.is_prefill.any() else step.batch.num_reqs
            self.draft_kv.skip(requests, slice(0, first))
            if first == step.batch.num_reqs:
                return
        *catch_up, spans = self.draft_kv.plan(
            requests,
            slice(first, None),
            num_drafts=step.num_drafts,
            max_num_rows=self.max_num_tokens,
            max_model_len=self.max_model_len,
        )
        for part in catch_up:
            self.forward.run(step, part, first)
        num_replayed = self._replay_all(step, spans, first) or self._replay(step, spans)
        first, spans = first + num_replayed, spans[num_replayed:]
        if len(spans) == 0:
            return
        hidden_states = self.forward.run(step, spans, first)
        if step.num_drafts > 0:
            self._sample(hidden_states, step.slots, first, step.num_drafts, requests.will_sample[first:])

    def _draft_dummy(self, step: DraftStep) -> None:
        """Run a draft step of full size that touches no request: profiling, warm-up, idle data-parallel ranks."""
        num_reqs = step.batch.num_reqs
        # vLLM leaves room for K rows a request only where it does not price steps, and then asks for more than fit.
        longest = min(self.max_model_len, max(self.max_num_tokens // num_reqs, 1))
        spans = np.minimum(step.batch.num_scheduled_tokens + step.num_drafts, longest).astype(np.int32)
        num_replayed = self._replay(step, spans) if step.has_attention else 0
        if num_replayed < num_reqs:
            hidden_states = self.forward.run(step, spans[num_replayed:], num_replayed)
            everyone = np.full(num_reqs - num_replayed, True)
            self._sample(hidden_states, step.slots, num_replayed, step.num_drafts, everyone)

    def _replay_all(self, step: DraftStep, spans: IntArray, first: int) -> int:
        """Draft for all requests from `first` on, from a graph with room for their prompts. Returns for how many."""
        # The estimator knows a request by its place in the batch.
        may_spread = self.acceptance_estimator is None
        found = self.forward.find_places(spans, step.num_drafts) if may_spread else None
        if found is None:
            return 0
        shape, places = found
        self.idx_mapping.fill_(NO_REQUEST)
        if step.num_drafts > 0:
            self.idx_mapping[places.lasts] = step.slots
        self.forward.replay_places(step, shape, places, first)
        if step.num_drafts > 0:
            self.draft_tokens[: len(spans)] = self.draft_tokens[places.lasts]
        return len(spans)

    def _replay(self, step: DraftStep, spans: IntArray) -> int:
        """Draft for the first requests of the step from a graph, if there is one. Returns for how many."""
        # The estimator knows a request by its place in the batch, so a batch is drafted for at once.
        may_split = self.acceptance_estimator is None
        num_decodes = self.forward.num_decodes(spans, step.num_drafts)
        shape = self.forward.find_graph(step, spans, num_decodes, may_split=may_split)
        if shape is None:
            return 0
        if num_decodes < len(spans):
            self.idx_mapping[num_decodes:].fill_(NO_REQUEST)
        self.forward.replay(step, shape, num_decodes)
        return num_decodes

    def _graph_step(
        self,
        num_reqs: int,
        num_rows: int,
        attn_metadata: dict[str, Any] | None,
        slot_mappings: dict[str, Tensor] | None,
        num_tokens_across_dp: Tensor | None,
        mode: CUDAGraphMode,
    ) -> None:
        """Captured: 2K rows of each request through the draft, K draft tokens out; or the model's pieces."""
        hidden_states = self.forward.run_captured(num_reqs, num_rows, attn_metadata, slot_mappings, mode)
        if attn_metadata is not None:
            self._sample(hidden_states, self.idx_mapping, 0, num_rows // (2 * num_reqs), np.full(num_reqs, True))

    def _sample(
        self,
        hidden_states: Tensor,
        slots: Tensor,  # [B] int64, of the whole step
        first: int,
        num_drafts: int,
        will_sample: NDArray[np.bool_],
    ) -> None:
        """Sample K tokens for each request from `first` on that will sample, whose rows have just been run.

        A draw is keyed by the position before its token.
        """
        num_reqs = len(will_sample)
        requests: Tensor | slice = slice(first, first + num_reqs)
        rows, slots = self.rows.sample_rows(num_reqs, num_drafts), slots[requests]
        # The estimator wants every request of a batch.
        if not will_sample.all() and self.acceptance_estimator is None:
            if not will_sample.any():
                return
            some = async_tensor_h2d(np.flatnonzero(will_sample), self.device, torch.int64)
            rows, slots, requests = rows[some], slots[some], some + first
        flat = rows.flatten()  # [B * K]
        if self.trees is not None:
            self.draft_tokens[requests] = self.trees.draft(
                self.forward.model.candidates(hidden_states[flat], self.head), slots
            )
            return
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
