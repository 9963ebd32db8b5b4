"""The draft on model runner V2: loaded through vLLM, run over rows that `prepare_draft_inputs` lays out.

B requests · R request slots · K draft tokens · D draft rows · H hidden size · V target vocabulary
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
from vllm_pard.serving.attention import takes
from vllm_pard.serving.attention_backends import is_ours
from vllm_pard.serving.draft_group import group_of_one, tensor_parallel_group
from vllm_pard.serving.draft_head import DraftHead, choose_head
from vllm_pard.serving.vocabulary import NEVER, draft_token_ids, use_target_vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftStep:
    """What one step tells the draft."""

    batch: InputBatch
    num_sampled: Tensor  # [B] int32
    num_rejected: Tensor  # [B] int32
    last_sampled: Tensor  # [R, 1] int64
    is_dummy: bool
    has_attention: bool


class DraftForward(StandaloneARSpeculator):
    """One forward of the draft over any number of rows of each request."""

    vllm_config: Any
    draft_logits: Tensor | None  # [R, K, V], only for probabilistic drafts

    def __init__(self, vllm_config: Any, device: torch.device, request_state: RequestState) -> None:
        super().__init__(vllm_config, device)
        spec = self.speculative_config
        self.mask_token_id = spec.mask_token_id
        self.request_state = request_state
        is_whole_on_each_rank = spec.draft_parallel_config.tensor_parallel_size == 1
        has_ranks = vllm_config.parallel_config.tensor_parallel_size > 1
        self.draft_group = group_of_one() if is_whole_on_each_rank and has_ranks else None
        self.draft_vocab_size = int(self.draft_model_config.get_vocab_size())
        self.target_vocab_size = int(vllm_config.model_config.get_vocab_size())
        if self.draft_logits is not None and self.draft_vocab_size != self.target_vocab_size:
            shape = (self.max_num_reqs, self.num_speculative_steps, self.target_vocab_size)
            self.draft_logits = torch.full(shape, NEVER, dtype=self.draft_logits.dtype, device=device)

        self.head: DraftHead | None = None  # None: the model's logits choose the tokens
        self.has_own_attention = False  # known once the K/V cache is
        self.num_draft_kv = torch.zeros(self.max_num_reqs, dtype=torch.int32, device=device)
        self.slot_mapping = torch.empty(self.max_num_tokens, dtype=torch.int64, device=device)  # later vLLM's own
        self.sample_rows = torch.zeros(self.max_num_reqs * self.num_speculative_steps, dtype=torch.int64, device=device)

    def load_draft_model(self, target_model: nn.Module, target_attn_layer_names: set[str]) -> nn.Module:
        """Load the draft through vLLM, with its own attention backend, answering in the target's vocabulary."""
        spec = self.speculative_config
        with tensor_parallel_group(self.draft_group), self._draft_attention_backend():
            model: nn.Module = super().load_draft_model(target_model, target_attn_layer_names)
            token_ids = draft_token_ids(spec.draft_vocab, self.device)
            if self.draft_logits is None and not self.use_acceptance_estimator:
                self.head = choose_head(
                    model,
                    num_tokens=min(self.draft_vocab_size, self.target_vocab_size),
                    token_ids=token_ids,
                    use_int8=spec.draft_head_int8,
                    num_drafts=self.num_speculative_steps,
                    max_num_reqs=self.max_num_reqs,
                    group=get_tp_group(),
                )
            # Logits are still asked for where no head chooses the tokens.
            ids_of_logits = token_ids if self.head is None else None
            use_target_vocabulary(model, self.draft_vocab_size, self.target_vocab_size, ids_of_logits)
        return model

    def set_attn(self, *args: Any, **kwargs: Any) -> None:
        """Take the K/V cache's layout; the draft's layers must share one K/V cache group."""
        super().set_attn(*args, **kwargs)
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
        # The target is through with it in this step, and graphs read it where upstream captures it.
        self.slot_mapping = self.block_tables.slot_mappings[self.kv_cache_group]
        layers = self.vllm_config.compilation_config.static_forward_context
        self.has_own_attention = all(is_ours(layers[name]) for name in self.draft_attn_layer_names)

    @contextmanager
    def _draft_attention_backend(self) -> Iterator[None]:
        """The draft's layers read their backend from the config of the whole engine."""
        config, backend = self.vllm_config, self.speculative_config.attention_backend
        if backend is not None:
            self.vllm_config = replace(config, attention_config=replace(config.attention_config, backend=backend))
        try:
            yield
        finally:
            self.vllm_config = config

    def _forward(self, step: DraftStep, spans: NDArray[np.int32], num_drafts: int) -> Tensor:
        """Run the draft over `spans[b]` rows of each request. Returns hidden states [D, H]."""
        query_start_loc = np.concatenate(([0], np.cumsum(spans))).astype(np.int32)
        num_rows = int(query_start_loc[-1])
        self._prepare(step, query_start_loc, num_drafts)
        metadata, slot_mappings = None, None
        if step.has_attention:
            all_slot_mappings = self.block_tables.slot_mappings[:, :num_rows]
            slot_mappings = build_slot_mappings_by_layer(all_slot_mappings, self.kv_cache_config)
            eager = BatchExecutionDescriptor(
                cg_mode=CUDAGraphMode.NONE, num_tokens=num_rows, num_reqs=step.batch.num_reqs
            )
            metadata = self._metadata(step, query_start_loc, eager)
        return self._run_rows(num_rows, metadata, slot_mappings)

    def _run_rows(
        self, num_rows: int, metadata: dict[str, Any] | None, slot_mappings: dict[str, Tensor] | None
    ) -> Tensor:
        """The model over the first rows of the input buffers. Returns hidden states [D, H]."""
        across_dp = None
        if self.dp_size > 1:
            # A draft has no experts to share with other ranks; vLLM only checks that each rank knows its own number.
            across_dp = torch.full((self.dp_size,), num_rows, dtype=torch.int32, device="cpu")
        buffers = self.input_buffers
        hidden_states: Tensor = self._run_model(
            buffers.input_ids[:num_rows], buffers.positions[:num_rows], metadata, slot_mappings, across_dp
        )
        return hidden_states

    def _prepare(self, step: DraftStep, query_start_loc: NDArray[np.int32], num_drafts: int) -> None:
        """Lay out the rows; of more requests than the step has, those beyond are padding."""
        batch, buffers, state = step.batch, self.input_buffers, self.request_state
        num_reqs, num_rows = len(query_start_loc) - 1, int(query_start_loc[-1])
        device_query_start_loc = buffers.query_start_loc[: num_reqs + 1]
        async_tensor_h2d(query_start_loc, out=device_query_start_loc)
        block_tables, num_blocks, slot_mappings, block_sizes = self._block_tables()
        prepare_draft_inputs(
            target_input_ids=batch.input_ids,
            target_positions=batch.positions,
            target_query_start_loc=batch.query_start_loc,
            kept_rows=None,
            request_slots=self.idx_mapping[:num_reqs],
            num_sampled=step.num_sampled,
            num_rejected=step.num_rejected,
            last_sampled=step.last_sampled,
            all_token_ids=state.all_token_ids.gpu,
            block_tables=block_tables,
            num_blocks=num_blocks,
            num_draft_kv=self.num_draft_kv,
            query_start_loc=device_query_start_loc,
            input_ids=buffers.input_ids[:num_rows],
            positions=buffers.positions[:num_rows],
            slot_mappings=slot_mappings,
            seq_lens=buffers.seq_lens[:num_reqs],
            sample_rows=self.sample_rows[: num_reqs * num_drafts].view(num_reqs, num_drafts),
            block_sizes=block_sizes,
            mask_token_id=self.mask_token_id,
            vocab_size=self.draft_vocab_size,
            max_model_len=self.max_model_len,
            caches_masks=not (self.has_own_attention and takes(int(np.diff(query_start_loc).max()))),
        )

    def _block_tables(self) -> tuple[tuple[Tensor, ...], Tensor, Tensor, tuple[int, ...]]:
        """Block ids, number of blocks, slot mappings and block sizes of the draft's K/V cache groups.

        There are none while vLLM profiles without a K/V cache.
        """
        if not hasattr(self, "kv_cache_group"):
            return (), self.num_draft_kv[None], self.slot_mapping[None], ()
        tables, group = self.block_tables, slice(self.kv_cache_group, self.kv_cache_group + 1)
        block_tables = tuple(table.gpu for table in tables.block_tables[group])
        return block_tables, tables.num_blocks.gpu[group], tables.slot_mappings[group], tuple(tables.block_sizes[group])

    def _metadata(
        self, step: DraftStep, query_start_loc: NDArray[np.int32], shape: BatchExecutionDescriptor
    ) -> dict[str, Any] | None:
        batch, num_reqs = step.batch, step.batch.num_reqs
        upper_bound = batch.seq_lens_cpu_upper_bound
        longest = int(upper_bound[:num_reqs].max()) + self.num_speculative_steps
        self.draft_max_seq_len = min(max(longest, int(np.diff(query_start_loc).max())), self.max_model_len)
        metadata: dict[str, Any] | None = self._build_attn_metadata(
            num_reqs=num_reqs,
            batch_desc=shape,
            query_start_loc_np=query_start_loc,
            seq_lens_cpu_upper_bound=upper_bound,
            step=self.num_speculative_steps,
            slot_mappings=self.block_tables.slot_mappings[:, : shape.num_tokens],
        )
        return metadata
