"""Attention of the draft's layers: our kernel where a step has few rows a request, vLLM's Triton attention elsewhere.

A step's new keys and values go from the layer straight into the kernel, so those of mask tokens never enter the cache.

B requests · D draft rows · H query heads · N slots of a block
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from pard_kernels import Workspace, choose_num_splits, speculative_attention, workspace
from pard_kernels.attention_launch import MAX_NUM_ROWS
from torch import Tensor
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionType, CommonAttentionMetadata
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionBackend,
    TritonAttentionImpl,
    TritonAttentionMetadata,
    TritonAttentionMetadataBuilder,
)

from vllm_pard.config import ConfigError

# Where there is no GPU, only tests run the kernel: one that splits.
NUM_MULTIPROCESSORS_OF_TESTS = 64


@dataclass(kw_only=True)
class PardAttentionMetadata(TritonAttentionMetadata):
    """What a step's layers share, for steps that our kernel takes."""

    num_cached: Tensor  # [B] int32
    num_splits: int
    partial: Workspace | None


class PardAttentionMetadataBuilder(TritonAttentionMetadataBuilder):
    """Decides by the number of rows; built once a step."""

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.query_dtype = vllm_config.model_config.dtype
        self.num_multiprocessors = (
            torch.cuda.get_device_properties(device).multi_processor_count
            if device.type == "cuda"
            else NUM_MULTIPROCESSORS_OF_TESTS
        )
        # Both outlive a step, since CUDA graphs read them: layers and steps that share them run one after another.
        self.num_cached = torch.zeros(vllm_config.scheduler_config.max_num_seqs, dtype=torch.int32, device=device)
        self.workspaces: list[Workspace] = []

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> TritonAttentionMetadata:
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
        if not takes(common_attn_metadata.max_query_len):
            return metadata
        num_splits = choose_num_splits(
            num_requests=common_attn_metadata.num_reqs,
            num_rows=metadata.max_query_len,
            num_heads=self.num_heads_q,
            num_kv_heads=self.kv_cache_spec.num_kv_heads,
            head_size=self.kv_cache_spec.head_size,
            dtype=self.query_dtype,
            max_num_cached=metadata.max_seq_len,
            num_multiprocessors=self.num_multiprocessors,
        )
        ours = PardAttentionMetadata(
            **{field.name: getattr(metadata, field.name) for field in fields(metadata)},
            num_cached=self.num_cached[: common_attn_metadata.num_reqs],
            num_splits=num_splits,
            partial=self._workspace(num_splits, metadata.num_actual_tokens) if num_splits > 1 else None,
        )
        self.update_draft_decode_metadata(ours)
        return ours

    def build_for_cudagraph_capture(self, common_attn_metadata: CommonAttentionMetadata) -> TritonAttentionMetadata:
        if takes(common_attn_metadata.max_query_len):
            return self.build(0, common_attn_metadata)
        return super().build_for_cudagraph_capture(common_attn_metadata)

    def update_draft_decode_metadata(self, metadata: TritonAttentionMetadata) -> None:
        """Refresh what depends on the step, on the device; a CUDA graph holds this ahead of the forward."""
        if isinstance(metadata, PardAttentionMetadata):
            starts = metadata.query_start_loc
            torch.sub(metadata.seq_lens, starts[1:] - starts[:-1], out=metadata.num_cached)

    def _workspace(self, num_splits: int, num_rows: int) -> Workspace:
        """A view of memory that is large enough; none is ever freed, since a captured graph may write to it."""
        shape, head_size = (num_splits, num_rows, self.num_heads_q), self.kv_cache_spec.head_size
        size = math.prod(shape)
        flat = next((flat for flat in self.workspaces if flat.log_sum_exp.numel() >= size), None)
        if flat is None:
            flat = workspace(1, 1 << (size - 1).bit_length(), 1, head_size, self.device)
            self.workspaces.append(flat)
        return Workspace(
            output=flat.output.view(-1, head_size)[:size].view(*shape, head_size),
            log_sum_exp=flat.log_sum_exp.view(-1)[:size].view(shape),
        )


class PardAttentionImpl(TritonAttentionImpl):
    """One attention layer of a draft."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.supports_quant_query_input = False  # ours reads the query as it is, whatever the cache holds
        self.window = self.sliding_window[0] + 1 if self.sliding_window[0] >= 0 else None
        self.is_fp8 = self.kv_cache_dtype.startswith("fp8")
        if problem := self._problem():
            raise ConfigError(
                f"PARD's own attention can't run this draft: {problem}; "
                'leave "attention_backend" out of the speculative config'
            )

    def _problem(self) -> str | None:
        """What the kernel lacks, or None."""
        lacking = {
            "it uses ALiBi": self.alibi_slopes is not None,
            "it has attention sinks": self.sinks is not None,
            "its attention is not that of a decoder": self.attn_type != AttentionType.DECODER,
            "its layers share keys and values": self.kv_sharing_target_layer_name is not None,
            f"its K/V cache is {self.kv_cache_dtype}": self._is_per_token_head_quant
            or self.kv_cache_dtype == "fp8_e5m2",
            f"its window of {self.window} is shorter than {MAX_NUM_ROWS} rows": self.window is not None
            and self.window < MAX_NUM_ROWS,
            "its attention looks back by chunks": self.chunk_lookback >= 0,
        }
        return next((problem for problem, is_so in lacking.items() if is_so), None)

    def forward(
        self,
        layer: Any,
        query: Tensor,  # [D, H, head size]
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: TritonAttentionMetadata,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        if not isinstance(attn_metadata, PardAttentionMetadata):
            result: Tensor = super().forward(
                layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale
            )
            return result
        num_rows = attn_metadata.num_actual_tokens
        key_cache, value_cache = kv_cache.transpose(1, 2).tensor_split(2, dim=-1)  # [blocks, N, H of K/V, head size]
        if self.is_fp8:
            key_cache, value_cache = (cache.view(current_platform.fp8_dtype()) for cache in (key_cache, value_cache))
        speculative_attention(
            query[:num_rows],
            key[:num_rows],
            value[:num_rows],
            key_cache,
            value_cache,
            attn_metadata.block_table,
            attn_metadata.query_start_loc,
            attn_metadata.num_cached,
            scale=self.scale,
            max_num_rows=attn_metadata.max_query_len,
            num_splits=attn_metadata.num_splits,
            soft_cap=self.logits_soft_cap,
            window=self.window,
            key_scale=layer._k_scale if self.is_fp8 else None,
            value_scale=layer._v_scale if self.is_fp8 else None,
            out=output[:num_rows],
            partial=attn_metadata.partial,
        )
        return output


class PardAttentionBackend(TritonAttentionBackend):
    """vLLM's CUSTOM backend: Triton attention, with our kernel for the steps between prefills."""

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[PardAttentionImpl]:
        return PardAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[PardAttentionMetadataBuilder]:
        return PardAttentionMetadataBuilder


def takes(max_query_len: int) -> bool:
    """Whether our kernel takes a step: one bit of a mask for each new row."""
    return max_query_len <= MAX_NUM_ROWS


def register() -> None:
    """Make `"attention_backend": "CUSTOM"` mean ours, unless someone else's was registered before."""
    backend = AttentionBackendEnum.CUSTOM
    if not backend.is_overridden():
        register_backend(backend, f"{PardAttentionBackend.__module__}.{PardAttentionBackend.__qualname__}")
