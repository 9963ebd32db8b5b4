"""What a step's attention needs to know: requests with few new rows for our kernel, the others for the platform's.

The contract, for every backend that PARD builds on:

* vLLM's runner builds metadata once a step and K/V cache group (`build`), for the target and, through `DraftAttention`,
  for the draft.
* A FULL CUDA graph is captured on metadata of `build_for_cudagraph_capture`, which is never split: all requests of a
  graph have equally many rows. What our kernel reads then lies in tensors of fixed place.
* Before a replay either a graph of the draft refreshes them itself (`update_draft_decode_metadata`, recorded ahead of
  its forward) or the host calls `build` again. So `build` must write to the same tensors, and nothing that a replay may
  read is built in a hurry (`fast_build` is handed on and never set here).

B requests · D new rows · H query heads
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pard_kernels import Workspace, choose_num_splits, workspace
from pard_kernels.speculative_attention.launch_shape import MAX_NUM_ROWS, power_of_two
from torch import Tensor
from vllm.v1.attention.backend import AttentionCGSupport, AttentionMetadataBuilder, CommonAttentionMetadata
from vllm.v1.worker.ubatch_utils import UBatchSlice, split_attn_metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class NarrowRequests:
    """The first requests of a batch, with at most MAX_NUM_ROWS new rows each: what our kernel is launched with."""

    num_rows: int  # of all of them together
    max_num_rows: int  # of one of them
    block_table: Tensor  # [B, N] int32
    query_start_loc: Tensor  # [B + 1] int32
    seq_lens: Tensor  # [B] int32
    num_cached: Tensor  # [B] int32
    num_splits: int
    partial: Workspace | None
    ancestor_masks: Tensor | None = None  # [D] int64, of trees: which new rows of its request each row sees

    def refresh(self) -> None:
        """Follow `seq_lens` and `query_start_loc`, on the device."""
        starts = self.query_start_loc
        torch.sub(self.seq_lens, starts[1:] - starts[:-1], out=self.num_cached)


@dataclass(frozen=True, slots=True, kw_only=True)
class PardMetadata:
    """A step's metadata of one K/V cache group. Narrow requests come first, as vLLM sorts a batch."""

    narrow: NarrowRequests | None
    wide: Any | None  # the platform's own metadata, of the requests behind


class PardMetadataBuilder(AttentionMetadataBuilder[PardMetadata]):
    """Splits a batch, and has the platform's own builder build what is the platform's."""

    platform_builder: ClassVar[type[Any]]
    # Of equally many rows a request: where decodes and prefills mix, the split is the host's.
    _cudagraph_support = AttentionCGSupport.UNIFORM_BATCH

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.platform = self.platform_builder(kv_cache_spec, layer_names, vllm_config, device)
        self.supports_draft_decode_metadata_update = self.platform.supports_draft_decode_metadata_update
        self.query_dtype = vllm_config.model_config.dtype
        self.num_multiprocessors = num_multiprocessors(device)
        # Under adaptive verification the device packs fewer rows than the host counts, so only the device knows where
        # a request's rows begin.
        self.can_split = not vllm_config.speculative_config.enable_adaptive_verification
        # Both outlive a step, since CUDA graphs read them: layers and steps that share them run one after another.
        self.num_cached = torch.zeros(vllm_config.scheduler_config.max_num_seqs, dtype=torch.int32, device=device)
        self.workspaces: list[Workspace] = []

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> PardMetadata:
        """Split the batch behind its last leading request of at most MAX_NUM_ROWS rows."""
        common = common_attn_metadata
        num_narrow = self._num_narrow(common)
        if num_narrow == common.num_reqs:
            return PardMetadata(narrow=self._narrow(common), wide=None)
        if num_narrow == 0:
            return PardMetadata(narrow=None, wide=self.platform.build(common_prefix_len, common, fast_build))
        row = int(common.query_start_loc_cpu[num_narrow])
        narrow, wide = split_attn_metadata(
            [
                UBatchSlice(slice(0, num_narrow), slice(0, row)),
                UBatchSlice(slice(num_narrow, common.num_reqs), slice(row, common.num_actual_tokens)),
            ],
            common,
        )
        return PardMetadata(narrow=self._narrow(narrow), wide=self.platform.build(common_prefix_len, wide, fast_build))

    def build_for_cudagraph_capture(self, common_attn_metadata: CommonAttentionMetadata) -> PardMetadata:
        if takes(common_attn_metadata.max_query_len):
            return PardMetadata(narrow=self._narrow(common_attn_metadata), wide=None)
        return PardMetadata(narrow=None, wide=self.platform.build_for_cudagraph_capture(common_attn_metadata))

    def update_draft_decode_metadata(self, metadata: PardMetadata) -> None:
        """Refresh what depends on the step, on the device; a CUDA graph holds this ahead of the forward."""
        if metadata.narrow is not None:
            metadata.narrow.refresh()
        if metadata.wide is not None:
            self.platform.update_draft_decode_metadata(metadata.wide)

    def _num_narrow(self, common: CommonAttentionMetadata) -> int:
        if takes(common.max_query_len):
            return int(common.num_reqs)
        if not self.can_split:
            return 0
        starts = common.query_start_loc_cpu[: common.num_reqs + 1]
        is_wide = starts[1:] - starts[:-1] > MAX_NUM_ROWS
        return int(is_wide.int().argmax())

    def _narrow(self, common: CommonAttentionMetadata) -> NarrowRequests:
        num_splits = choose_num_splits(
            num_requests=common.num_reqs,
            num_rows=common.max_query_len,
            num_heads=self.platform.num_heads_q,
            num_kv_heads=self.kv_cache_spec.num_kv_heads,
            head_size=self.kv_cache_spec.head_size,
            dtype=self.query_dtype,
            max_num_cached=common.max_seq_len,
            num_multiprocessors=self.num_multiprocessors,
        )
        narrow = NarrowRequests(
            num_rows=common.num_actual_tokens,
            max_num_rows=common.max_query_len,
            block_table=common.block_table_tensor,
            query_start_loc=common.query_start_loc,
            seq_lens=common.seq_lens,
            num_cached=self.num_cached[: common.num_reqs],
            num_splits=num_splits,
            partial=self._workspace(num_splits, common.num_actual_tokens) if num_splits > 1 else None,
        )
        narrow.refresh()
        return narrow

    def _workspace(self, num_splits: int, num_rows: int) -> Workspace:
        """A view of memory that is large enough; none is ever freed, since a captured graph may write to it."""
        shape, head_size = (num_splits, num_rows, self.platform.num_heads_q), self.kv_cache_spec.head_size
        size = math.prod(shape)
        flat = next((flat for flat in self.workspaces if flat.log_sum_exp.numel() >= size), None)
        if flat is None:
            flat = workspace(1, power_of_two(size), 1, head_size, self.device)
            self.workspaces.append(flat)
        return Workspace(
            output=flat.output.view(-1, head_size)[:size].view(*shape, head_size),
            log_sum_exp=flat.log_sum_exp.view(-1)[:size].view(shape),
        )


def takes(num_rows: int) -> bool:
    """Whether our kernel takes a request with so many new rows: one bit of a mask for each."""
    return num_rows <= MAX_NUM_ROWS


def num_multiprocessors(device: torch.device) -> int:
    """Of a GPU, which our kernel fills with splits of the prefix; elsewhere it is only interpreted, whole."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 1
